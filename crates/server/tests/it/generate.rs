//! `nodetracker completions` and `nodetracker man`.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::command::COMMANDS;
use crate::support::{run, stderr, stdout};

#[test]
fn every_shell_gets_a_script_with_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]);
        assert_eq!(
            (script.status.code(), stderr(&script)),
            (Some(0), String::new()),
            "{shell}"
        );
        let script = stdout(&script);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
        assert!(script.contains("proxy-keep-alive-interval"), "{shell}");
    }
    let refused = run(&["completions", "csh"]);
    assert_eq!((refused.status.code(), stdout(&refused)), (Some(2), String::new()));
}

#[test]
fn bash_can_read_its_script_and_completes_a_flag() {
    let script = run(&["completions", "bash"]).stdout;
    let ask = "COMP_WORDS=(nodetracker serve --shut); COMP_CWORD=2; \
               _nodetracker nodetracker --shut serve; echo \"${COMPREPLY[@]}\"\n";
    let bash = Command::new("bash")
        .args(["--norc", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut bash = match bash {
        Ok(bash) => bash,
        Err(error) => return eprintln!("SKIPPED: bash cannot run: {error}"),
    };
    bash.stdin
        .take()
        .unwrap()
        .write_all(&[&script, ask.as_bytes()].concat())
        .unwrap();
    let output = bash.wait_with_output().unwrap();
    assert_eq!(stdout(&output).trim_end(), "--shutdown-delay");
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("man1");
    let written = run(&["man", "--dir", dir.to_str().unwrap()]);
    assert_eq!((written.status.code(), stderr(&written)), (Some(0), String::new()));
    let pages: BTreeSet<_> = dir
        .read_dir()
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .collect();
    let commands = COMMANDS.map(|command| format!("nodetracker-{command}.1"));
    let expected = commands.into_iter().chain(["nodetracker.1".to_owned()]).collect();
    assert_eq!(pages, expected);

    for command in ["serve", "log-level"] {
        let printed = run(&["man", command]);
        let page = std::fs::read_to_string(dir.join(format!("nodetracker-{command}.1"))).unwrap();
        assert_eq!(stdout(&printed), page);
        let foot = concat!("\"nodetracker ", env!("CARGO_PKG_VERSION"), "\"");
        assert!(
            page.lines().any(|line| line.starts_with(".TH") && line.contains(foot)),
            "{page}"
        );
    }
    assert!(stdout(&run(&["man", "serve"])).contains("shutdown\\-delay"));
    assert!(stdout(&run(&["man"])).contains("Exit codes:"));
}

#[test]
fn a_page_that_cannot_be_made_is_one_line() {
    let refused = run(&["man", "bogus"]);
    assert_eq!(refused.status.code(), Some(2));
    let line = "nodetracker: there is no command \"bogus\": `nodetracker help` lists all of them\n";
    assert_eq!(stderr(&refused), line);
    let refused = run(&["man", "--dir", "/dev/null/man1"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).starts_with("nodetracker: --dir /dev/null/man1: "),
        "{}",
        stderr(&refused)
    );
}
