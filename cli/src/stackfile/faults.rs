//! What is wrong with a stack file, all of it.

use std::fmt;

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where, such as `services.web.ports`; empty for the file as a whole.
    pub field: String,
    /// Why.
    pub reason: String,
}

/// All faults of a file, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    pub(super) fn one(field: &str, reason: impl Into<String>) -> Self {
        let mut faults = Self::default();
        faults.add(field, reason);
        faults
    }

    pub(super) fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        let fault = Fault {
            field: field.into(),
            reason: reason.into(),
        };
        if !self.0.contains(&fault) {
            self.0.push(fault);
        }
    }

    /// `value`, if there is no fault.
    pub(super) fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Fault { field, reason }) in self.0.iter().enumerate() {
            let line_end = if i == 0 { "" } else { "\n" };
            match field.as_str() {
                "" => write!(f, "{line_end}{reason}")?,
                field => write!(f, "{line_end}{field}: {reason}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
