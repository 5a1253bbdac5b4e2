//! What the benches are told on the command line.

use std::path::PathBuf;

#[derive(Debug)]
pub(crate) struct Args {
    /// Rows whose title has one of these are measured; all, where there are none.
    pub(crate) words: Vec<String>,
    /// `--record FILE`: where to write what was measured.
    pub(crate) record: Option<PathBuf>,
    /// Whether to measure. Without this, cargo wants to know only whether it works.
    pub(crate) is_bench: bool,
}

impl Args {
    pub(crate) fn parse() -> Self {
        let mut args = Self {
            words: Vec::new(),
            record: None,
            is_bench: false,
        };
        let mut rest = std::env::args().skip(1);
        while let Some(arg) = rest.next() {
            match arg.as_str() {
                "--bench" => args.is_bench = true,
                "--record" => args.record = Some(rest.next().expect("--record names a file").into()),
                flag if flag.starts_with("--") => {}
                _ => args.words.push(arg),
            }
        }
        args
    }

    pub(crate) fn wants(&self, title: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| title.contains(word.as_str()))
    }
}
