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

//! The sockets that only root can make: the listener for peers and the control
//! socket.  Runs in dfsd, the parent.  They are bound here and passed to raftd;
//! nothing is ever accepted here.

#![forbid(unsafe_code)]

use common::log::reason;
use common::sys::{bind, socket};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{chown, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Group wheel, which Linux calls root.
const WHEEL: u32 = 0;

/// Where peers reach this node; raftd listens when it is time.
pub fn listener(addr: SocketAddr) -> Result<OwnedFd, String> {
    bind::tcp(addr).map_err(|e| format!("bind: {addr}: {}", reason(&e)))
}

/// Whether another dfsd answers there.
pub fn check_running(path: &Path) -> Result<(), String> {
    match UnixStream::connect(path) {
        Ok(_) => Err(format!("{}: already running", path.display())),
        Err(_) => Ok(()),
    }
}

/// The socket of dfsctl(8), in place of one that nobody answers at any more.
/// It listens from here on: who connects early waits for raftd, and a second
/// dfsd sees at once that there is a first.
pub fn control(path: &Path) -> Result<OwnedFd, String> {
    check_running(path)?;
    let say = |what: &str, e: io::Error| format!("{what}: {}: {}", path.display(), reason(&e));
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            fs::remove_file(path).map_err(|e| say("unlink", e))?;
        }
        Ok(_) => return Err(format!("{}: not a socket", path.display())),
        // bind(2) will tell.
        Err(_) => (),
    }
    let fd = bind::unix(path, 0o600).map_err(|e| say("bind", e))?;
    chown(path, Some(0), Some(WHEEL)).map_err(|e| say("chown", e))?;
    let mode = fs::Permissions::from_mode(0o660);
    fs::set_permissions(path, mode).map_err(|e| say("chmod", e))?;
    socket::listen(&fd).map_err(|e| say("listen", e))?;
    Ok(fd)
}
