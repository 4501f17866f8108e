//! The fuzzer's bytes as numbers and lengths.

/// What is left of an input. At its end it gives zeros, so that whatever the fuzzer
/// does with the bytes, they mean something.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of an input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether only zeros follow.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next octet.
    pub fn octet(&mut self) -> u8 {
        let [octet] = self.octets();
        octet
    }

    /// The next two octets, the high one first.
    pub fn number(&mut self) -> u16 {
        u16::from_be_bytes(self.octets())
    }

    /// The next octets.
    pub fn octets<const N: usize>(&mut self) -> [u8; N] {
        let mut octets = [0; N];
        let there = self.take(N);
        octets[..there.len()].copy_from_slice(there);
        octets
    }

    /// So many octets, or as many as there are.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_ends_in_zeros() {
        let mut input = Input::new(&[1, 2, 3, 4, 5]);
        assert_eq!((input.octet(), input.number()), (1, 0x0203));
        assert_eq!(input.rest(), [4, 5]);
        assert_eq!(input.octets(), [4, 5, 0]);
        assert!(input.is_empty());
        assert_eq!((input.number(), input.take(2)), (0, &[][..]));
    }
}
