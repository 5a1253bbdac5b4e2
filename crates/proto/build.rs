//! Compiles the `.proto` files with protox, so that the build needs no `protoc`.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use prost::Message;

/// Where imports are looked for.
const ROOT: &str = "proto";
/// The folder of each package.
const PACKAGES: [&str; 4] = ["api", "nodetracker/agent/v1", "nodetracker/peer/v1", "nodetracker/v1"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let mut files = Vec::new();
    for package in PACKAGES {
        files.extend(proto_files(&Path::new(ROOT).join(package))?);
    }
    let descriptors = protox::compile(&files, [ROOT])?;
    // For reflection: comments and all.
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        // Not copied: a heartbeat is little else.
        .bytes(".nodetracker.v1.SessionHeartbeat")
        .codec_path("crate::SmallCodec")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The `.proto` files of a folder, in the order of their names.
fn proto_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let mut files: Vec<_> = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect();
    files.sort();
    Ok(files)
}
