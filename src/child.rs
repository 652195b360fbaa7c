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

//! A child process of the parent, and the channel to it.  Runs in dfsd, the
//! parent.  What comes from a child is decoded here and judged by the caller;
//! what does not decode ends dfsd.

#![forbid(unsafe_code)]

use common::fatal;
use common::imsg::{Imsgbuf, Message, ReadStatus};
use common::log::{self, reason};
use common::msg::PARENT_FRAME_MAX;
use common::proc::{self, Pid};
use common::sys::poll::{PollFd, PollFlags};
use common::sys::process;
use common::sys::signal::Signal;
use common::sys::socket::socketpair;
use std::os::fd::{AsFd, OwnedFd};

pub struct Child<Tx, Rx> {
    pub program: &'static str,
    pub pid: Pid,
    /// None once either side has closed it.  The descriptors in its queue are
    /// closed with it: a copy of a FUSE device that stayed here would keep
    /// everybody waiting for a dead fused.
    chan: Option<Imsgbuf<Tx, Rx>>,
}

impl<Tx: Message, Rx: Message> Child<Tx, Rx> {
    /// fork+exec.  All but this comes to the child as messages.
    pub fn start(program: &'static str, debug: bool) -> Result<Self, String> {
        let path = proc::libexec(program, debug);
        let (ours, theirs) = socketpair().map_err(|e| format!("socketpair: {}", reason(&e)))?;
        let mut args = Vec::new();
        if debug {
            args.push("-d");
        }
        if log::log_verbose() {
            args.push("-v");
        }
        let pid = proc::spawn(&path, &args, theirs, debug)
            .map_err(|e| format!("exec: {}: {}", path.display(), reason(&e)))?;
        let mut chan = Imsgbuf::new(ours, PARENT_FRAME_MAX);
        chan.allow_fdpass();
        Ok(Child {
            program,
            pid,
            chan: Some(chan),
        })
    }

    /// To a child that has gone nothing is sent; its end is learned by wait(2).
    pub fn send(&mut self, msg: Tx, fd: Option<OwnedFd>) {
        let Some(chan) = &mut self.chan else {
            return;
        };
        if let Err(e) = chan.compose(&msg, 0, fd, &[]) {
            fatal!(e, "{}: compose {}", self.program, msg.name());
        }
        self.flush();
    }

    /// As much as the socket takes now.
    pub fn flush(&mut self) {
        if let Some(chan) = &mut self.chan {
            if chan.write().is_err() {
                self.close();
            }
        }
    }

    /// All that has come.
    pub fn receive(&mut self) -> Vec<Rx> {
        let mut msgs = Vec::new();
        while let Some(chan) = &mut self.chan {
            let status = match chan.read() {
                Ok(status) => status,
                Err(e) => fatal!(e, "{}: imsg_read", self.program),
            };
            loop {
                match chan.get() {
                    Ok(Some(imsg)) => msgs.push(imsg.msg),
                    Ok(None) => break,
                    Err(e) => fatal!(e, "{}: imsg_get", self.program),
                }
            }
            match status {
                ReadStatus::Data => (),
                ReadStatus::WouldBlock => break,
                ReadStatus::Closed => self.close(),
            }
        }
        msgs
    }

    /// The child sees it and exits.
    pub fn close(&mut self) {
        self.chan = None;
    }

    pub fn kill(&self) {
        // It fails only if there is no such child any more.
        let _ = proc::kill(self.pid, Signal::SIGKILL);
    }

    /// It has ended, or is about to, and wait(2) may never tell.
    pub fn is_zombie(&self) -> bool {
        process::is_zombie(self.pid.as_raw())
    }

    pub fn poll_fd(&self) -> Option<PollFd<'_>> {
        let chan = self.chan.as_ref()?;
        let mut events = PollFlags::POLLIN;
        events.set(PollFlags::POLLOUT, chan.queued_bytes() > 0);
        Some(PollFd::new(chan.as_fd(), events))
    }
}
