//! Reads a page of metrics in the text format of [OpenMetrics 1.0].
//!
//! Comments are skipped, apart from the last line, `# EOF`: a page without this line was cut. Timestamps and exemplars
//! are skipped, too.
//!
//! [OpenMetrics 1.0]: https://prometheus.io/docs/specs/om/open_metrics_spec/

use std::collections::BTreeMap;

use thiserror::Error;

/// The labels of a sample, with their values.
pub(super) type Labels = BTreeMap<String, String>;

/// A page: the values of each metric, by the labels of the sample.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Page(BTreeMap<String, BTreeMap<Labels, f64>>);

/// Why a page cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("line {line} of the metrics: {reason}")]
pub(super) struct PageError {
    line: usize,
    reason: &'static str,
}

impl Page {
    /// Reads a page, in time linear in its size.
    ///
    /// # Errors
    ///
    /// A line is no sample and no comment, a series has two samples, or the page does not end with `# EOF`.
    pub(super) fn parse(text: &str) -> Result<Self, PageError> {
        let mut page = Self::default();
        let mut lines = (1..).zip(text.lines());
        for (line, text) in &mut lines {
            if text == "# EOF" {
                return match lines.next() {
                    None => Ok(page),
                    Some((line, _)) => Err(PageError {
                        line,
                        reason: "there is text after # EOF",
                    }),
                };
            }
            if !text.is_empty() && !text.starts_with('#') {
                page.read_sample(text).map_err(|reason| PageError { line, reason })?;
            }
        }
        Err(PageError {
            line: text.lines().count(),
            reason: "the page ends without # EOF",
        })
    }

    fn read_sample(&mut self, line: &str) -> Result<(), &'static str> {
        let (name, rest) = split_name(line)?;
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(labels) => read_labels(labels)?,
            None => (Labels::new(), rest),
        };
        let value = rest.strip_prefix(' ').ok_or("there is no space before the value")?;
        let value = value.split(' ').next().unwrap_or_default();
        let value = value.parse().map_err(|_| "the value is no number")?;
        let series = self.0.entry(name.to_owned()).or_default();
        match series.insert(labels, value) {
            None => Ok(()),
            Some(_) => Err("the series has a value already"),
        }
    }

    /// Returns the values of a metric, by the labels of the sample.
    pub(super) fn series(&self, name: &str) -> impl Iterator<Item = (&Labels, f64)> {
        self.0
            .get(name)
            .into_iter()
            .flatten()
            .map(|(labels, value)| (labels, *value))
    }

    /// Returns the value of a series.
    pub(super) fn get(&self, name: &str, labels: &Labels) -> Option<f64> {
        self.0.get(name)?.get(labels).copied()
    }

    /// Returns the value of a metric without labels.
    pub(super) fn value(&self, name: &str) -> Option<f64> {
        self.get(name, &Labels::new())
    }
}

/// Splits a text after its first name.
fn split_name(text: &str) -> Result<(&str, &str), &'static str> {
    let is_in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':');
    let end = text.bytes().position(|byte| !is_in_name(byte)).unwrap_or(text.len());
    match text.as_bytes().first() {
        Some(first) if end > 0 && !first.is_ascii_digit() => Ok(text.split_at(end)),
        _ => Err("there is no name"),
    }
}

/// Reads labels up to their brace. Returns the text after the brace.
fn read_labels(mut text: &str) -> Result<(Labels, &str), &'static str> {
    let mut labels = Labels::new();
    loop {
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (name, rest) = split_name(text)?;
        let value = rest.strip_prefix("=\"").ok_or("a label has no value in quotes")?;
        let (value, rest) = read_quoted(value)?;
        if labels.insert(name.to_owned(), value).is_some() {
            return Err("a label occurs twice");
        }
        text = match rest.strip_prefix(',') {
            Some(rest) => rest,
            None if rest.starts_with('}') => rest,
            None => return Err("there is neither a comma nor a brace after a label"),
        };
    }
}

/// Reads a text up to its closing quote. Returns the text after the quote.
fn read_quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next() {
            Some('"') => return Ok((value, characters.as_str())),
            Some('\\') => value.push(match characters.next() {
                Some('n') => '\n',
                Some(escaped @ ('"' | '\\')) => escaped,
                _ => return Err("a label has an unknown escape"),
            }),
            Some(character) => value.push(character),
            None => return Err("the value of a label has no closing quote"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = "\
# HELP calls Calls that ended
# TYPE calls counter
calls_total{method=\"A\\\\dd\",code=\"O\\nK\\\"\"} 5
calls_total{method=\"Get\",} 1.5e3 1700000000.5 # {trace=\"x\"} 7
up 1
most +Inf
ratio NaN
# EOF
";
        let page = Page::parse(text).expect("a good page");
        let series: Vec<_> = page.series("calls_total").collect();
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        };
        let first = labels(&[("method", "A\\dd"), ("code", "O\nK\"")]);
        let second = labels(&[("method", "Get")]);
        assert_eq!(series, [(&first, 5.0), (&second, 1500.0)]);
        assert_eq!(page.get("calls_total", &second), Some(1500.0));
        assert_eq!((page.value("up"), page.value("most")), (Some(1.0), Some(f64::INFINITY)));
        assert!(page.value("ratio").is_some_and(f64::is_nan));
        assert_eq!((page.value("calls_total"), page.series("none").count()), (None, 0));
    }

    #[test]
    fn a_page_that_cannot_be_read_is_an_error_that_names_its_line() {
        for (text, line, reason) in [
            ("", 0, "the page ends without # EOF"),
            ("up 1\nup{a=\"b\"} 1\n", 2, "the page ends without # EOF"),
            ("# EOF\nup 1\n", 2, "there is text after # EOF"),
            ("up 1\nup 2\n# EOF\n", 2, "the series has a value already"),
            ("{} 1\n# EOF", 1, "there is no name"),
            ("7up 1\n# EOF", 1, "there is no name"),
            ("é 1\n# EOF", 1, "there is no name"),
            ("up\n# EOF", 1, "there is no space before the value"),
            ("up one\n# EOF", 1, "the value is no number"),
            ("up \n# EOF", 1, "the value is no number"),
            ("up{a} 1\n# EOF", 1, "a label has no value in quotes"),
            (
                "up{a=\"b\"c=\"d\"} 1\n# EOF",
                1,
                "there is neither a comma nor a brace after a label",
            ),
            ("up{a=\"b\",a=\"c\"} 1\n# EOF", 1, "a label occurs twice"),
            ("up{a=\"\\x\"} 1\n# EOF", 1, "a label has an unknown escape"),
            ("up{a=\"b} 1\n# EOF", 1, "the value of a label has no closing quote"),
            ("up{\n# EOF", 1, "there is no name"),
        ] {
            assert_eq!(Page::parse(text), Err(PageError { line, reason }), "{text:?}");
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic() {
        let page = "a{b=\"\\\\é\\n\"} 1 2 # {c=\"d\"} 3\n# EOF\n";
        for end in (0..=page.len()).filter(|&end| page.is_char_boundary(end)) {
            let is_whole = end >= page.len() - 1;
            assert_eq!(Page::parse(&page[..end]).is_ok(), is_whole, "{end}");
        }
        let seed = 7;
        let mut random = fastrand::Rng::with_seed(seed);
        for round in 0..20_000 {
            let mut bytes = page.as_bytes().to_vec();
            for _ in 0..random.usize(1..5) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.choice(b"{}\"\\,= #\n1a\xc3").copied().unwrap_or_default();
            }
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(page) = Page::parse(&text) {
                assert!(
                    page.0.len() < text.lines().count(),
                    "seed {seed}, round {round}: {text:?}"
                );
            }
        }
    }
}
