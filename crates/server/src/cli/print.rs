//! Output of the commands: aligned columns for people, or JSON for scripts.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use nodetracker_proto::v1;
use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;
use unicode_width::UnicodeWidthStr;

use crate::cli::commands::{CommandError, TrackerArgs};
use crate::config::duration;

/// The output format, and the tracker to call.
#[derive(Debug, Args)]
pub(crate) struct Print {
    /// How to print the answer
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) at: TrackerArgs,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns under a heading
    #[default]
    Table,
    /// One object a line; nothing if the answer is empty
    Json,
}

impl Format {
    /// Prints a whole answer: rows under a heading, or the objects of the rows.
    pub(crate) fn print<T: Serialize, const N: usize>(
        self,
        heading: Option<[&str; N]>,
        objects: &[T],
        row: impl Fn(&T) -> [String; N],
    ) -> Result<(), CommandError> {
        let mut out = io::stdout().lock();
        self.write(&mut out, heading, objects, row)?;
        Ok(out.flush()?)
    }

    pub(crate) fn write<T: Serialize, const N: usize>(
        self,
        out: &mut impl Write,
        heading: Option<[&str; N]>,
        objects: &[T],
        row: impl Fn(&T) -> [String; N],
    ) -> io::Result<()> {
        let mut answer = PagedOutput::new(self, heading);
        answer.push(out, objects, row)?;
        answer.finish(out)
    }

    /// Prints what a command did, which only scripts want to read.
    pub(crate) fn done<T: Serialize>(self, object: &T) -> Result<(), CommandError> {
        match self {
            Format::Table => Ok(()),
            Format::Json => self.print(None::<[&str; 0]>, &[object], |_| []),
        }
    }
}

/// An answer that arrives page by page.
pub(crate) enum PagedOutput<const N: usize> {
    /// Keeps all rows, since the widths of the columns are known only after the last row.
    Table {
        /// The cells, each with a tab behind it. A cell has no tab, since [`visible`] escapes tabs.
        cells: String,
        widths: [usize; N],
    },
    Json,
}

impl<const N: usize> PagedOutput<N> {
    pub(crate) fn new(format: Format, heading: Option<[&str; N]>) -> Self {
        match format {
            Format::Json => Self::Json,
            Format::Table => {
                let mut answer = Self::Table {
                    cells: String::new(),
                    widths: [0; N],
                };
                if let Some(heading) = heading {
                    answer.keep(&heading.map(str::to_owned));
                }
                answer
            }
        }
    }

    /// Writes the objects, or keeps their rows.
    pub(crate) fn push<T: Serialize>(
        &mut self,
        out: &mut impl Write,
        objects: &[T],
        row: impl Fn(&T) -> [String; N],
    ) -> io::Result<()> {
        for object in objects {
            match self {
                Self::Table { .. } => self.keep(&row(object)),
                Self::Json => {
                    json_line(out, object)?;
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, row: &[String; N]) {
        if let Self::Table { cells, widths } = self {
            for (text, width) in row.iter().zip(widths) {
                let text = cell(text);
                *width = text.width().max(*width);
                cells.push_str(&text);
                cells.push('\t');
            }
        }
    }

    /// Writes the rows.
    pub(crate) fn finish(self, out: &mut impl Write) -> io::Result<()> {
        let Self::Table { cells, widths } = self else {
            return Ok(());
        };
        for (text, column) in cells.split_terminator('\t').zip((0..N).cycle()) {
            match column + 1 == N {
                // The last column needs no padding.
                true => writeln!(out, "{text}")?,
                // Formatting would pad by the number of characters, and some characters take two columns.
                false => write!(out, "{text}{:pad$}  ", "", pad = widths[column] - text.width())?,
            }
        }
        Ok(())
    }
}

/// A route in JSON.
#[derive(Debug, Default, Serialize)]
pub(crate) struct RouteRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    #[serde(flatten)]
    pub(crate) proxy: ProxyRow,
    #[serde(serialize_with = "as_rfc3339")]
    pub(crate) last_refresh_time: Option<SystemTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) age_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verdict: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) complaint: Option<ComplaintRow>,
}

/// The complaints about a route in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct ComplaintRow {
    pub(crate) count: u64,
    pub(crate) reporter_id: String,
    #[serde(serialize_with = "as_rfc3339")]
    pub(crate) last_time: Option<SystemTime>,
}

impl From<v1::Complaint> for ComplaintRow {
    fn from(complaint: v1::Complaint) -> Self {
        Self {
            count: complaint.count,
            reporter_id: complaint.reporter_id,
            last_time: time(complaint.last_time),
        }
    }
}

impl RouteRow {
    /// Returns the text of the column VERDICT.
    pub(crate) fn verdict_and_complaints(&self) -> String {
        let verdict = self.verdict.unwrap_or_default();
        match &self.complaint {
            None => verdict.to_owned(),
            Some(complaint) => {
                let time = complaint.last_time.map(rfc3339).unwrap_or_default();
                let reporter = match complaint.reporter_id.as_str() {
                    "" => String::new(),
                    id => format!(" by {id}"),
                };
                format!("{verdict}; complaints: {}, last{reporter} at {time}", complaint.count)
            }
        }
    }

    /// Returns the text of the column UPDATED.
    pub(crate) fn updated(&self) -> String {
        self.last_refresh_time.map(rfc3339).unwrap_or_default()
    }
}

/// A proxy in JSON. A removed proxy has no ID.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ProxyRow {
    pub(crate) proxy_id: String,
    pub(crate) cluster_name: String,
    pub(crate) addr: String,
}

impl From<v1::Proxy> for ProxyRow {
    fn from(proxy: v1::Proxy) -> Self {
        Self {
            proxy_id: proxy.proxy_id,
            cluster_name: proxy.cluster_name,
            addr: proxy.addr,
        }
    }
}

/// Writes an object and the end of the line.
pub(crate) fn json_line(out: &mut impl Write, object: &impl Serialize) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, VisibleJson);
    object.serialize(&mut serializer)?;
    writeln!(out)
}

/// Compact JSON with the same escapes as [`visible`], so that a terminal shows which name it is.
struct VisibleJson;

impl Formatter for VisibleJson {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        for character in fragment.chars() {
            match is_invisible(character) {
                true => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(out, "\\u{unit:04x}")?;
                    }
                }
                false => write!(out, "{character}")?,
            }
        }
        Ok(())
    }
}

/// Escapes the characters that a terminal does not show as they are. These are control characters, characters that
/// change the direction of the text after them, and characters without a glyph. A node's name could otherwise look like
/// another name.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_invisible(character) {
            true => shown.extend(character.escape_unicode()),
            false => shown.push(character),
        }
    }
    shown
}

/// Unicode's `Default_Ignorable_Code_Point`, which has the marks of direction and the characters without a width, and
/// the controls and separators.
fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Soft hyphen, grapheme joiner, Arabic letter mark, byte order mark.
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{feff}'
            // Fillers of Hangul.
            | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}'
            // Inherent vowels of Khmer; selectors and the vowel separator of Mongolian.
            | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            // Zero-width space and joiners, marks of direction.
            | '\u{200b}'..='\u{200f}'
            // Line and paragraph separators, embeddings and overrides.
            | '\u{2028}'..='\u{202e}'
            // Word joiner, invisible operators, isolates.
            | '\u{2060}'..='\u{206f}'
            // Variation selectors.
            | '\u{fe00}'..='\u{fe0f}'
            // Reserved, interlinear annotations.
            | '\u{fff0}'..='\u{fffb}'
            // Controls of shorthand and of musical notation.
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            // Tags, more variation selectors.
            | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Returns the text of a cell: escaped, or a dash if there is none.
pub(crate) fn cell(text: &str) -> String {
    if text.is_empty() { "-".into() } else { visible(text) }
}

/// Formats an age in whole seconds, in the units that the flags and the configuration take.
pub(crate) fn age(age: Duration) -> String {
    duration::format(Duration::from_secs(age.as_secs()))
}

/// Formats bytes: as megabytes with one decimal, and less than a megabyte as kilobytes or bytes.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..999_950 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

pub(crate) fn time(time: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    SystemTime::try_from(time?).ok()
}

/// Formats a time to the millisecond, in UTC.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    // Formatting fails for years before 1970 and after 9999.
    let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(time.clamp(SystemTime::UNIX_EPOCH, latest)).to_string()
}

fn as_rfc3339<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(rfc3339).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_follow_the_verdict() {
        let complaint = |reporter_id: &str| ComplaintRow {
            count: 2,
            reporter_id: reporter_id.to_owned(),
            last_time: Some(SystemTime::UNIX_EPOCH),
        };
        for (complaint, expected) in [
            (None, "returned"),
            (
                Some(complaint("p3")),
                "returned; complaints: 2, last by p3 at 1970-01-01T00:00:00.000Z",
            ),
            (
                Some(complaint("")),
                "returned; complaints: 2, last at 1970-01-01T00:00:00.000Z",
            ),
        ] {
            let route = RouteRow {
                verdict: Some("returned"),
                complaint,
                ..RouteRow::default()
            };
            assert_eq!(route.verdict_and_complaints(), expected);
        }
    }

    #[test]
    fn a_small_size_is_not_zero() {
        for (bytes, text) in [
            (0, "0 B"),
            (142, "142 B"),
            (1_000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (3_000_000_000, "3000.0 MB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn invisible_characters_are_escaped() {
        assert_eq!(visible("a\u{202e}b"), r"a\u{202e}b");
        assert_eq!(visible("a\tb\u{7f}\u{9b}"), r"a\u{9}b\u{7f}\u{9b}");
        let ranges = [
            '\u{202a}'..='\u{202e}',
            '\u{2066}'..='\u{2069}',
            '\u{200b}'..='\u{200f}',
        ];
        let singles = [
            '\u{61c}',
            '\u{2060}',
            '\u{feff}',
            '\u{34f}',
            '\u{1160}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{e0100}',
        ];
        for character in ranges.into_iter().flatten().chain(singles) {
            let escaped = format!("\\u{{{:x}}}", u32::from(character));
            assert_eq!(visible(&character.to_string()), escaped);
        }
        assert_eq!(visible("né-1 節点 🦀"), "né-1 節点 🦀");
    }

    #[test]
    fn invisible_characters_are_escaped_in_json_too() {
        let node = "né\u{202e}a\"\u{e0100}\n";
        let mut line = Vec::new();
        json_line(&mut line, &node).unwrap();
        assert_eq!(String::from_utf8_lossy(&line), "\"né\\u202ea\\\"\\udb40\\udd00\\n\"\n");
        assert_eq!(serde_json::from_slice::<String>(&line).unwrap(), node);
    }

    #[test]
    fn wide_characters_take_two_columns() {
        let mut table = Vec::new();
        Format::Table
            .write(&mut table, Some(["NODE", "ADDR"]), &["節点", "né"], |node| {
                [(*node).to_owned(), "a:1".to_owned()]
            })
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&table), "NODE  ADDR\n節点  a:1\nné    a:1\n");
    }
}
