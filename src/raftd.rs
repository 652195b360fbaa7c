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

//! What comes from raftd, and what it is told.  Runs in dfsd, the parent.
//! raftd speaks for clients of the control socket, whose right to ask it has
//! checked; it names mounts by number, and what a number means is looked up
//! here.

#![forbid(unsafe_code)]

use crate::Parent;
use crate::Stop;
use common::conf::Conf;
use common::ctl::CtlResult;
use common::imsg::Message;
use common::msg::{ParentToFused, ParentToRaftd, RaftdToParent};
use common::{fatalx, log, log_info};

impl Parent {
    /// In pieces, which raftd swaps in at the end.
    pub fn send_config(&mut self) {
        let conf = Conf {
            peers: Vec::new(),
            mounts: Vec::new(),
            ..self.conf.clone()
        };
        self.raftd.send(ParentToRaftd::ReconfConf(conf), None);
        for peer in &self.conf.peers {
            let msg = ParentToRaftd::ReconfPeer(peer.clone());
            self.raftd.send(msg, None);
        }
        for m in &self.conf.mounts {
            let msg = ParentToRaftd::ReconfMount(m.clone());
            self.raftd.send(msg, None);
        }
        self.raftd.send(ParentToRaftd::ReconfEnd, None);
    }

    pub fn answer(&mut self, client: u32, result: CtlResult) {
        let msg = ParentToRaftd::CtlResult { client, result };
        self.raftd.send(msg, None);
    }

    pub fn dispatch_raftd(&mut self) {
        for msg in self.raftd.receive() {
            let stopping = !matches!(self.stop, Stop::No);
            match msg {
                RaftdToParent::Ready if !self.ready => {
                    self.ready = true;
                    log_info!("ready");
                }
                RaftdToParent::Ready => fatalx!("dispatch_raftd: unexpected {}", msg.name()),
                RaftdToParent::ReconfDone => self.reconf_done(),
                RaftdToParent::CtlStop { client } => {
                    self.answer(client, CtlResult::Ok);
                    self.stop();
                }
                RaftdToParent::CtlReload { client }
                | RaftdToParent::CtlLogVerbose { client, .. }
                | RaftdToParent::CtlMount { client, .. }
                | RaftdToParent::CtlUmount { client, .. }
                    if stopping =>
                {
                    self.answer(client, CtlResult::Failed);
                }
                RaftdToParent::CtlReload { client } => self.reload(Some(client)),
                RaftdToParent::CtlLogVerbose { client, verbose } => {
                    self.log_verbose(verbose);
                    self.answer(client, CtlResult::Ok);
                }
                RaftdToParent::CtlMount { client, mount } => self.ctl_mount(client, mount),
                RaftdToParent::CtlUmount { client, mount } => self.ctl_umount(client, mount),
            }
        }
    }

    fn log_verbose(&mut self, verbose: bool) {
        log::log_setverbose(verbose);
        self.raftd.send(ParentToRaftd::LogVerbose(verbose), None);
        for slot in self.mounts.values_mut() {
            if let Some(fused) = slot.fused_mut() {
                fused.send(ParentToFused::LogVerbose(verbose), None);
            }
        }
    }
}
