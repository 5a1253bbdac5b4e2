//! The command line of the benches.

use std::path::PathBuf;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Args {
    /// Rows whose title has one of these words are measured; all rows if there are no words.
    pub(crate) words: Vec<String>,
    /// `--record FILE`: the file for the results.
    pub(crate) record: Option<PathBuf>,
    /// `--seconds N`: the budget of time for the whole run, in benches that have such a budget.
    pub(crate) seconds: Option<u64>,
    /// Whether to measure. Otherwise cargo only checks that the bench works.
    pub(crate) is_bench: bool,
}

impl Args {
    /// Parses the arguments of this process. If an argument is wrong, prints an error and exits.
    pub(crate) fn parse() -> Self {
        Self::read(std::env::args().skip(1)).unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(2)
        })
    }

    pub(crate) fn read(mut rest: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self::default();
        while let Some(arg) = rest.next() {
            match arg.as_str() {
                "--bench" => args.is_bench = true,
                "--record" => args.record = Some(rest.next().ok_or("--record needs the name of a file")?.into()),
                "--seconds" => {
                    let number = rest.next().unwrap_or_default();
                    let seconds = number.parse();
                    args.seconds =
                        Some(seconds.map_err(|_| format!("--seconds needs a whole number, not {number:?}"))?);
                }
                flag if flag.starts_with("--") => {}
                _ => args.words.push(arg),
            }
        }
        Ok(args)
    }

    pub(crate) fn wants(&self, title: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| title.contains(word.as_str()))
    }
}
