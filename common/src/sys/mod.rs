// Copyright (c) 2026 The dfsd authors
//
// Permission to use, copy, modify, and distribute this software for any
// purpose with or without fee is hereby granted, provided that the above
// copyright notice and this permission notice appear in all copies.
//
// THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
// WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
// MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
// ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
// WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
// ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF
// OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.

//! What the operating systems do differently, one file per concern, with
//! OpenBSD and Linux side by side.  The only place with `unsafe`; runs in all
//! processes and decides nothing.
//!
//! What else may ask for the system, and why; `regress/walls` reads this list:
//!
//! | file                       | what differs                               |
//! | -------------------------- | ------------------------------------------ |
//! | fused/src/device.rs        | how many threads may read the device       |
//! | raftd/src/fused/change.rs  | whether the kernel judges ownership        |
//! | regress/dfsd/dir.rs        | the option of umount(8)                    |
//! | regress/fused/posix.rs     | calls that Linux alone has                 |
//! | regress/imsg/proc.rs       | what can be seen of another process        |
//!
//! And raftd/Cargo.toml: which semaphores LMDB has.

pub mod bind;
pub mod clock;
pub mod closefrom;
pub mod daemon;
pub mod errno;
pub mod file;
pub mod malloc;
pub mod maps;
pub mod mount;
pub mod pending;
pub mod pledge;
pub mod poll;
pub mod privilege;
pub mod process;
pub mod random;
pub mod release;
pub mod rlimit;
pub mod signal;
pub mod socket;
pub mod syslog;
pub mod title;
pub mod unveil;
