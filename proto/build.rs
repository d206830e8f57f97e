//! Compiles the event definitions without protoc: protox parses, prost-build writes the Rust.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let file = "proto/arbees/events/v1/events.proto";
    println!("cargo:rerun-if-changed={file}");
    let set = protox::compile([file], ["proto"])?;
    prost_build::Config::new()
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .compile_fds(set)?;
    Ok(())
}
