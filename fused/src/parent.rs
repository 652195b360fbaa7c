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

//! Messages from the parent.  fused only; asks the parent for nothing.

#![forbid(unsafe_code)]

use crate::spawn;
use common::conf::Mount;
use common::imsg::{Imsg, ImsgReader, Imsgbuf, Message};
use common::log::log_setverbose;
use common::msg::{FusedToParent, Lane, ParentToFused};
use common::{fatal, fatalx};
use std::os::fd::OwnedFd;

pub type Parent = Imsgbuf<FusedToParent, ParentToFused>;

/// All that a fused is born to wait for.
pub struct Setup {
    pub mount: Mount,
    pub control: OwnedFd,
    pub bulk: OwnedFd,
    pub device: OwnedFd,
}

/// Receives until Startup.
pub fn receive(parent: &mut Parent) -> Setup {
    let (mut mount, mut control, mut bulk, mut device) = (None, None, None, None);
    loop {
        let mut imsg = match parent.recv_blocking() {
            Ok(Some(imsg)) => imsg,
            Ok(None) => lost(),
            Err(e) => fatal!(e, "imsg_get: parent"),
        };
        match &imsg.msg {
            ParentToFused::ReconfMount(conf) => mount = Some(conf.clone()),
            ParentToFused::SocketIpc {
                lane: Lane::Control,
            } => control = Some(take_fd(&mut imsg)),
            ParentToFused::SocketIpc { lane: Lane::Bulk } => bulk = Some(take_fd(&mut imsg)),
            ParentToFused::FuseFd => device = Some(take_fd(&mut imsg)),
            ParentToFused::LogVerbose(verbose) => log_setverbose(*verbose),
            ParentToFused::Startup => break,
        }
    }
    match (mount, control, bulk, device) {
        (Some(mount), Some(control), Some(bulk), Some(device)) => Setup {
            mount,
            control,
            bulk,
            device,
        },
        _ => fatalx!("dispatch_parent: IMSG_STARTUP too early"),
    }
}

fn take_fd(imsg: &mut Imsg<ParentToFused>) -> OwnedFd {
    match imsg.take_fd() {
        Ok(fd) => fd,
        Err(e) => fatal!(e, "imsg_get: parent"),
    }
}

fn lost() -> ! {
    fatalx!("lost parent")
}

/// Starts the thread that listens to the parent; when there is none any more,
/// neither is there a fused.
pub fn start(mut reader: ImsgReader<ParentToFused>) {
    spawn("parent", move || loop {
        match reader.recv_blocking() {
            Ok(Some(imsg)) => dispatch_parent(imsg.msg),
            Ok(None) => lost(),
            Err(e) => fatal!(e, "imsg_get: parent"),
        }
    });
}

fn dispatch_parent(msg: ParentToFused) {
    match msg {
        ParentToFused::LogVerbose(verbose) => log_setverbose(verbose),
        other => fatalx!("dispatch_parent: unexpected {}", other.name()),
    }
}
