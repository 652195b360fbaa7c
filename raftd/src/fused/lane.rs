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

//! One socket to a fused: a thread reads it, whoever has an answer writes it.
//! raftd only.  A fused that sends nonsense is cut off; it is ours, so that
//! is a bug or an attack.

use super::locked;
use crate::ready::{readiness, write_ready};
use common::imsg::{ImsgReader, ImsgWriter, Imsgbuf};
use common::log_warnx;
use common::msg::{FusedToRaftd, RaftdToFused, FUSED_FRAME_MAX};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::sleep;

/// What nobody waits for waits so long for an answer to go with: every message
/// alone wakes a thread of fused.
const SOON: Duration = Duration::from_millis(1);
/// A fused that lets so much pile up has stopped reading.
const QUEUE_MAX: usize = 64 << 20;

pub struct Lane {
    /// For readiness; reading and writing are the imsg halves' affair.
    socket: UnixStream,
    writer: Mutex<ImsgWriter<RaftdToFused>>,
    /// Something is queued that the socket would not take, or that waits.
    wake: Notify,
    soon: AtomicBool,
}

/// The receiving half; the thread that reads the lane owns it.
pub type Reader = ImsgReader<FusedToRaftd>;

impl Lane {
    /// Must be called inside the runtime.
    pub fn new(fd: OwnedFd) -> io::Result<(Arc<Lane>, Reader)> {
        let mut imsgbuf = Imsgbuf::new(fd, FUSED_FRAME_MAX);
        imsgbuf.allow_fdpass();
        let (reader, writer) = imsgbuf.into_split();
        let lane = Arc::new(Lane {
            socket: readiness(&reader.socket())?,
            writer: Mutex::new(writer),
            wake: Notify::new(),
            soon: AtomicBool::new(false),
        });
        tokio::spawn(lane.clone().drain());
        Ok((lane, reader))
    }

    /// Sends at once what the socket takes, and the rest from the task: so
    /// an answer costs no task switch, and nobody who answers ever waits.
    pub fn send(&self, msg: &RaftdToFused, fd: Option<OwnedFd>, bulk: bytes::Bytes) {
        let mut writer = locked(&self.writer);
        let composed = match bulk.is_empty() {
            true => writer.compose(msg, 0, fd, &[]),
            false => writer.compose_owned(msg, 0, fd, bulk),
        };
        if let Err(e) = composed {
            log_warnx!("fused: {e}");
            return;
        }
        let full = writer.queued_bytes() > QUEUE_MAX;
        match writer.write() {
            Ok(true) => {}
            Ok(false) if !full => self.wake.notify_one(),
            // The reading thread notices, and takes the mount down.
            Ok(false) | Err(_) => drop(writer.shutdown()),
        }
    }

    /// Sends behind the next message, or after a moment.
    pub fn send_soon(&self, msg: &RaftdToFused) {
        if let Err(e) = locked(&self.writer).compose(msg, 0, None, &[]) {
            log_warnx!("fused: {e}");
        }
        if !self.soon.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    async fn drain(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            if self.soon.load(Ordering::Relaxed) {
                sleep(SOON).await;
                self.soon.store(false, Ordering::Relaxed);
            }
            let write = || locked(&self.writer).write();
            if write_ready(&self.socket, write).await.is_err() {
                return;
            }
        }
    }

    pub fn shutdown(&self) {
        let _ = locked(&self.writer).shutdown();
    }
}
