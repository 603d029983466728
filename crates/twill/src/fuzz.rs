//! Entry points into the parsers for `make fuzz`: files, names, packets and HTTP. Compiled with `cfg(fuzzing)` alone.

use std::sync::LazyLock;

use plan::env_file;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{cache, diff, flags, footprint, http, locks, probe, status};

/// Maximum length of a request and of an answer, bytes.
const ROOM: usize = 1 << 20;

/// Reads an options file, and sets the flags that it names.
pub fn options_file(text: &str) {
    flags::fuzz(text);
}

/// Reads a subnet file as `twill docker-opts` does.
pub fn env_file(text: &str) {
    env_file::parse(text).for_each(|line| drop(line.assignment));
}

/// Reads a cache file, and a footprint.
pub fn cache(bytes: &[u8]) {
    cache::fuzz(bytes);
    footprint::fuzz(bytes);
}

/// Reads what a daemon answers to `twill status` and `twill diff`.
pub fn answer(bytes: &[u8]) {
    status::fuzz(bytes);
    diff::fuzz(bytes);
}

/// Reads the name of an abstract unix address.
pub fn name(name: &str) {
    locks::fuzz(name);
}

/// Reads a packet, or a frame without its Ethernet header.
pub fn frame(bytes: &[u8]) {
    probe::fuzz(bytes);
}

/// Answers the request behind the first byte: on the unix socket if that byte is odd, else on the port.
pub fn request(bytes: &[u8]) {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap_or_else(|error| panic!("{error}"))
    });
    let Some((first, bytes)) = bytes.split_first() else { return };
    RUNTIME.block_on(async {
        let (mut client, server) = tokio::io::duplex(ROOM);
        let talk = async {
            let _ = client.write_all(bytes).await;
            let _ = client.shutdown().await;
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer).await;
        };
        tokio::join!(http::fuzz(server, first % 2 == 1), talk);
    });
}
