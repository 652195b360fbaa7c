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

//! Readiness of the Unix sockets that imsg reads and writes, for the runtime.
//! raftd only.

use common::imsg::ReadStatus;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The runtime's view of a socket that imsg reads and writes.
pub fn readiness(socket: &OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(std::os::unix::net::UnixStream::from(socket.try_clone()?))
}

/// Waits until there is something to read, and reads.
pub async fn read_ready(
    socket: &UnixStream,
    mut read: impl FnMut() -> io::Result<ReadStatus>,
) -> io::Result<ReadStatus> {
    loop {
        socket.readable().await?;
        let status = socket.try_io(Interest::READABLE, || match read()? {
            ReadStatus::WouldBlock => Err(io::ErrorKind::WouldBlock.into()),
            status => Ok(status),
        });
        match status {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            status => return status,
        }
    }
}

/// Writes until all is written, waiting for room as often as it takes.
pub async fn write_ready(
    socket: &UnixStream,
    mut write: impl FnMut() -> io::Result<bool>,
) -> io::Result<()> {
    loop {
        socket.writable().await?;
        let written = socket.try_io(Interest::WRITABLE, || match write()? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        });
        match written {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            written => return written,
        }
    }
}
