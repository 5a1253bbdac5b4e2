//! Durations, as operators write them: `300s`, `5m`, `1h30m`.
//!
//! There is no unit `M`, which is easily written instead of `m`, and no unit of varying length.

use std::time::Duration;

/// The longest duration: a century. No use of a duration needs more, and sums of durations do not overflow.
const LONGEST_DAYS: u64 = 36_500;

/// Milliseconds of a day.
const DAY_MILLIS: u128 = 24 * 3600 * 1000;

/// Returns the milliseconds of a unit.
fn millis(unit: &str) -> Option<u128> {
    Some(match unit {
        "ms" | "millis" => 1,
        "s" | "sec" | "secs" | "second" | "seconds" => 1000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60 * 1000,
        "h" | "hr" | "hour" | "hours" => 3600 * 1000,
        "d" | "day" | "days" => DAY_MILLIS,
        _ => return None,
    })
}

/// Parses a duration: one or more numbers, each with a unit.
///
/// humantime is not used here. It accepts units that mislead, and panics on some sums beyond its range.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let not_duration = |reason: &str| Err(format!("{text:?} is not a duration: {reason}"));
    let mut rest = text.trim();
    if rest.is_empty() {
        return not_duration("a number and a unit are needed, for example 5m");
    }
    // No unit is needed.
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (number, after) = split(rest, |c| c.is_ascii_digit());
        if number.is_empty() {
            return not_duration(&format!("{rest:?} does not begin with a number"));
        }
        let (unit, after) = split(after.trim_start(), char::is_alphabetic);
        if unit.is_empty() {
            return not_duration("a unit is needed after each number, for example 5m");
        }
        let Some(millis) = millis(unit) else {
            return not_duration(&format!("{unit:?} is no unit: use d, h, m, s or ms"));
        };
        // A number that does not fit is too long in any unit.
        let number = number.parse().unwrap_or(u128::MAX);
        total = total.saturating_add(millis.saturating_mul(number));
        rest = after.trim_start();
    }
    match u64::try_from(total) {
        Ok(millis) if total <= u128::from(LONGEST_DAYS) * DAY_MILLIS => Ok(Duration::from_millis(millis)),
        _ => Err(format!("{text:?} is too long: the limit is {LONGEST_DAYS} days")),
    }
}

/// Splits a text after the characters at its beginning that satisfy a condition.
fn split(text: &str, is_first: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !is_first(c)).unwrap_or(text.len()))
}

/// Writes a duration so that [`parse`] reads it.
pub(crate) fn format(duration: Duration) -> String {
    const DAY: u64 = 24 * 3600;
    let days = duration.as_secs() / DAY;
    let rest = duration - Duration::from_secs(days * DAY);
    match (days, rest) {
        (0, rest) => humantime::format_duration(rest).to_string(),
        (days, Duration::ZERO) => format!("{days}d"),
        (days, rest) => format!("{days}d {}", humantime::format_duration(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_what_operators_write() {
        for (text, seconds) in [
            ("5m", 300),
            ("300s", 300),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("5 min", 300),
            ("31d", 31 * 24 * 3600),
            ("366days 1s", 366 * 24 * 3600 + 1),
        ] {
            let duration = parse(text);
            assert_eq!(duration, Ok(Duration::from_secs(seconds)), "{text}");
            assert_eq!(parse(&format(Duration::from_secs(seconds))), duration);
        }
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(format(Duration::from_secs(32 * 24 * 3600)), "32d");
    }

    #[test]
    fn units_that_mislead_are_refused() {
        for unit in ["M", "month", "months", "y", "year", "w", "H", "S", "MS", "us", "µs"] {
            let reason = format!("\"5{unit}\" is not a duration: {unit:?} is no unit: use d, h, m, s or ms");
            assert_eq!(parse(&format!("5{unit}")), Err(reason));
        }
        assert!(parse("1h5M").is_err());
        assert!(parse("5").is_err());
        assert!(parse("-5m").is_err());
        assert!(parse("").is_err());
        assert_eq!(
            parse(" 5M"),
            Err("\" 5M\" is not a duration: \"M\" is no unit: use d, h, m, s or ms".to_owned())
        );
        assert!(parse("\t1y").is_err());
        assert_eq!(parse(" 5m "), Ok(Duration::from_secs(300)));
    }

    /// humantime panics on some of these.
    #[test]
    fn an_endless_duration_is_refused() {
        const MOST: u64 = u64::MAX;
        for text in [
            format!("{MOST}s 1000ms"),
            format!("{MOST}s 999ms 1ms"),
            format!("{MOST}s"),
            format!("{MOST}0s"),
            format!("{MOST}ms"),
            "36501d".to_owned(),
            "18446744073709551615s1000ms".to_owned(),
        ] {
            let reason = parse(&text).expect_err(&text);
            assert_eq!(reason, format!("{text:?} is too long: the limit is 36500 days"));
        }
        assert_eq!(parse("36500d"), Ok(Duration::from_secs(36_500 * 24 * 3600)));
    }
}
