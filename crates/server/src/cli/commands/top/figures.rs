//! Figures as text: rates, latencies, sizes and shares. A dash stands for a missing figure.

use std::time::Duration;

use indicatif::HumanCount;

use crate::cli::commands::top::model::Quantile;
use crate::cli::print;

/// The text of a figure that is missing.
pub(super) const NONE: &str = "-";

fn or_none(value: Option<f64>, text: impl FnOnce(f64) -> String) -> String {
    value
        .filter(|value| value.is_finite())
        .map_or_else(|| NONE.to_owned(), text)
}

/// Formats a count, with a comma after each thousand.
pub(super) fn count(value: Option<f64>) -> String {
    or_none(value, |value| HumanCount(value.round() as u64).to_string())
}

/// Formats a rate per second: small rates with one decimal.
pub(super) fn rate(value: Option<f64>) -> String {
    or_none(value, |value| match value {
        0.0 => "0/s".to_owned(),
        value if value < 0.1 => "<0.1/s".to_owned(),
        value if value < 9.95 => format!("{value:.1}/s"),
        value => format!("{}/s", HumanCount(value.round() as u64)),
    })
}

/// Formats a latency in its unit.
pub(super) fn latency(quantile: Option<Quantile>) -> String {
    match quantile {
        None => NONE.to_owned(),
        Some(Quantile::About(seconds)) => seconds_in_unit(seconds),
        Some(Quantile::Above(seconds)) => format!(">{}", seconds_in_unit(seconds)),
    }
}

fn seconds_in_unit(seconds: f64) -> String {
    let (value, unit) = match seconds {
        seconds if seconds < 0.999_5e-3 => (seconds * 1e6, "µs"),
        seconds if seconds < 0.999_5 => (seconds * 1e3, "ms"),
        seconds => (seconds, "s"),
    };
    match value < 9.95 {
        true => format!("{value:.1} {unit}"),
        false => format!("{value:.0} {unit}"),
    }
}

/// Formats bytes.
pub(super) fn bytes(value: Option<f64>) -> String {
    or_none(value, |value| print::size(value as u64))
}

/// Formats seconds as an age, in whole seconds.
pub(super) fn age(seconds: Option<f64>) -> String {
    or_none(seconds, |seconds| {
        print::age(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
    })
}

/// Formats a part of a whole.
pub(super) fn percent(part: Option<f64>) -> String {
    or_none(part, |part| format!("{:.0} %", part * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_digits_that_matter() {
        for (value, text) in [
            (0.0, "0/s"),
            (0.04, "<0.1/s"),
            (0.1, "0.1/s"),
            (9.94, "9.9/s"),
            (9.96, "10/s"),
            (999.6, "1,000/s"),
            (33_460_046.0, "33,460,046/s"),
        ] {
            assert_eq!(rate(Some(value)), text);
        }
        for (seconds, text) in [
            (8.2e-6, "8.2 µs"),
            (131e-6, "131 µs"),
            (0.001, "1.0 ms"),
            (0.0999, "100 ms"),
            (0.999_9, "1.0 s"),
            (90.0, "90 s"),
        ] {
            assert_eq!(latency(Some(Quantile::About(seconds))), text);
        }
        assert_eq!(latency(Some(Quantile::Above(0.268))), ">268 ms");
        for (value, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (1000.0, "1,000"),
            // No metric of a tracker is negative.
            (-1_234_567.0, "0"),
        ] {
            assert_eq!(count(Some(value)), text);
        }
        assert_eq!(
            (bytes(Some(51.24e6)), percent(Some(0.065))),
            ("51.2 MB".to_owned(), "6 %".to_owned())
        );
        assert_eq!(
            (age(Some(-3.0)), age(Some(3700.9))),
            ("0s".to_owned(), "1h 1m 40s".to_owned())
        );
    }

    #[test]
    fn figures_that_are_not_there_or_no_numbers_are_a_dash() {
        for value in [None, Some(f64::NAN), Some(f64::INFINITY)] {
            let texts = [count(value), rate(value), bytes(value), age(value), percent(value)];
            assert_eq!(texts, [NONE; 5]);
        }
        assert_eq!(latency(None), NONE);
        // Largest of all numbers.
        assert_eq!(count(Some(f64::MAX)), "18,446,744,073,709,551,615");
        age(Some(f64::MAX));
    }
}
