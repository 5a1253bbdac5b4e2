//! What the READMEs show of `nodetracker top`: a picture, and the text of a terminal.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use xshell::{Shell, cmd};

use crate::load::write_section;
use crate::task::{Outcome, target};

const PICTURE: &str = "docs/top.svg";
const README: &str = "crates/server/README.md";

/// How long the load lasts before the picture.
const LOAD_TIME: Duration = Duration::from_secs(40);

/// The socket of a tmux server of its own.
const SOCKET: &str = "nodetracker-picture";

/// A process that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts a tracker under load, and takes what `top` shows in a terminal of 80 columns.
pub(crate) fn run(sh: &Shell) -> Outcome {
    cmd!(
        sh,
        "cargo build --release --quiet --locked -p nodetracker-server --bin nodetracker"
    )
    .run()?;
    let program = target().join("release/nodetracker");
    let free = || Ok::<_, std::io::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string());
    let (listen, diag) = (free()?, free()?);
    let start = |args: &[&str]| {
        Command::new(&program)
            .args(args)
            .stdout(Stdio::null())
            .spawn()
            .map(Running)
    };
    let _server = start(&["serve", "--listen-addr", &listen, "--diag-addr", &diag])?;
    for _ in 0..100 {
        if TcpStream::connect(&listen).is_ok() {
            break;
        }
        sleep(Duration::from_millis(50));
    }
    let _load = start(&[
        "bench",
        "--addr",
        &listen,
        "--mode",
        "mixed",
        "--rate",
        "50%",
        "--duration",
        "1m",
    ])?;
    let tmux = |args: &[&str]| cmd!(sh, "tmux -L {SOCKET} -f /dev/null {args...}").quiet().read();
    let server = program.display().to_string();
    tmux(&[
        "new-session",
        "-d",
        "-x",
        "80",
        "-y",
        "24",
        &server,
        "top",
        "--interval",
        "1s",
        &diag,
    ])?;
    let taken = (|| {
        sleep(LOAD_TIME);
        let overview = tmux(&["capture-pane", "-p", "-e"])?;
        tmux(&["send-keys", "2"])?;
        sleep(Duration::from_secs(1));
        Ok::<_, xshell::Error>((overview, tmux(&["capture-pane", "-p"])?))
    })();
    tmux(&["kill-server"])?;
    let (overview, calls) = taken?;
    sh.write_file(PICTURE, anstyle_svg::Term::new().render_svg(&overview))?;
    println!("{calls}");
    write_section(sh, README, "picture", "top", &format!("```text\n{calls}\n```"))
}
