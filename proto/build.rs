//! Compiles the contract without protoc.

use std::{env, fs, path::PathBuf};

fn main() -> anyhow::Result<()> {
    use prost::Message as _;
    let files =
        ["kagemusha/agent/v1/agent.proto", "kagemusha/coordinator/v1/coordinator.proto", "kagemusha/sif/v1/sif.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| anyhow::anyhow!("OUT_DIR is set by cargo"))?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
