//! Makes the C library give large pieces of memory back once they are done with. By itself it learns from the first of them
//! to keep all that come later, and ten thousand peers then cost twice the memory for good. It reads its settings before
//! `main`, so the process begins anew, once, under the same pid.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Bytes; mallopt(3). Setting one ends the learning.
const SETTINGS: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "65536")];

/// Begins anew if nobody has set them. Where that cannot be, more memory is all that it costs.
pub(crate) fn settle() {
    if SETTINGS.iter().any(|(name, _)| std::env::var_os(name).is_some()) {
        return;
    }
    let (Ok(program), mut args) = (std::env::current_exe(), std::env::args_os()) else { return };
    let mut command = Command::new(program);
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    // Returns only if it fails.
    let _ = command.args(args).envs(SETTINGS).exec();
}
