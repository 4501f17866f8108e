//! What data goes with a service, in words for whoever removes it.

use kontena_schema::http::services::ServiceData;

use super::tables::age;

/// What the instances of some services keep; none if they keep nothing. One that is not
/// known comes from a Master of the version before.
pub(crate) fn removed(services: &[Option<ServiceData>]) -> Option<String> {
    let Some(known) = services.iter().copied().collect::<Option<Vec<_>>>() else {
        return Some("What its instances keep in volumes is not known, and is removed".to_owned());
    };
    let sum = |of: fn(&ServiceData) -> i64| known.iter().map(of).sum::<i64>();
    let (instances, untold) = (sum(|data| data.instances), sum(|data| data.untold));
    let mut parts = Vec::new();
    if instances > 0 {
        let measured = instances - sum(|data| data.unmeasured);
        let oldest = known.iter().filter_map(|data| data.age_s).max();
        let size = size(sum(|data| data.bytes), oldest);
        parts.push(match (instances, measured) {
            (1, 0) => "1 instance keeps data in volumes, of unknown size".to_owned(),
            (_, 0) => format!("{instances} instances keep data in volumes, of unknown size"),
            (1, _) => format!("1 instance keeps {size} in volumes"),
            (_, _) if measured < instances => format!(
                "{instances} instances keep data in volumes: {size} in {measured} of them, the rest of unknown size"
            ),
            (_, _) => format!("{instances} instances keep {size} in volumes"),
        });
    }
    match untold {
        0 => {}
        1 => parts.push("what 1 instance keeps is not known".to_owned()),
        _ => parts.push(format!("what {untold} instances keep is not known")),
    }
    if parts.is_empty() {
        return None;
    }
    let mut text = parts.join("; ");
    text[..1].make_ascii_uppercase();
    Some(text + ". It is removed with them")
}

fn size(bytes: i64, age_s: Option<i64>) -> String {
    let amount = amount(bytes);
    match age_s {
        Some(seconds) => format!(
            "{amount} (measured {} ago)",
            age(time::Duration::seconds(seconds))
        ),
        None => amount,
    }
}

fn amount(bytes: i64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fitting = units.into_iter().find(|(shift, _)| bytes >= 1 << shift);
    match fitting {
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / f64::from(1 << shift)),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(instances: i64, bytes: i64, unmeasured: i64, untold: i64) -> Option<ServiceData> {
        Some(ServiceData {
            instances,
            bytes,
            unmeasured,
            untold,
            age_s: (instances > unmeasured).then_some(720),
        })
    }

    #[test]
    fn the_text_says_how_much_goes_and_what_is_not_known() {
        let with = |data: &[Option<ServiceData>]| removed(data).unwrap_or_default();
        assert_eq!(removed(&[data(0, 0, 0, 0)]), None);
        for (data, text) in [
            (
                vec![data(1, 5 << 20, 0, 0)],
                "1 instance keeps 5.0 MiB (measured 12m ago) in volumes. It is removed with them",
            ),
            (
                vec![data(2, 3 << 29, 0, 0), data(1, 0, 0, 0)],
                "3 instances keep 1.5 GiB (measured 12m ago) in volumes. It is removed with them",
            ),
            (
                vec![data(3, 2048, 1, 0)],
                "3 instances keep data in volumes: 2.0 KiB (measured 12m ago) in 2 of them, the rest of \
                 unknown size. It is removed with them",
            ),
            (
                vec![data(2, 0, 2, 1)],
                "2 instances keep data in volumes, of unknown size; what 1 instance keeps is not known. \
                 It is removed with them",
            ),
            (
                vec![data(0, 0, 0, 2)],
                "What 2 instances keep is not known. It is removed with them",
            ),
            (
                vec![data(1, 1, 0, 0), None],
                "What its instances keep in volumes is not known, and is removed",
            ),
        ] {
            assert_eq!(with(&data), text);
        }
    }
}
