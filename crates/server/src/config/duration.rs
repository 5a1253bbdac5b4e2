//! Durations, as operators write them: `300s`, `5m`, `1h30m`.

use std::time::Duration;

/// The units of a duration. There is no `M`, which is easily written instead of `m`, and no unit of varying length.
const UNITS: [&str; 19] = [
    "ms", "millis", "s", "sec", "secs", "second", "seconds", "m", "min", "mins", "minute", "minutes", "h", "hr",
    "hour", "hours", "d", "day", "days",
];

/// Parses a duration.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let not_duration = |reason: String| format!("{text:?} is not a duration: {reason}");
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let mut units = text.split(|c: char| !c.is_alphabetic()).filter(|unit| !unit.is_empty());
        if let Some(unit) = units.find(|unit| !UNITS.contains(unit)) {
            return Err(not_duration(format!("{unit:?} is no unit: use d, h, m, s or ms")));
        }
    }
    humantime::parse_duration(text).map_err(|error| not_duration(error.to_string()))
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
    }
}
