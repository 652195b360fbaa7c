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

//! Messages from the parent.  raftd only.  Whatever is wrong with one is
//! fatal: it is a bug, or an attack.

use crate::control::Control;
use crate::engine::Engine;
use crate::fused::Pair;
use crate::ready::{read_ready, readiness};
use common::conf::{Conf, Mount, MountId, Peer};
use common::imsg::{Imsg, ImsgError, Imsgbuf, ReadStatus};
use common::log::log_setverbose;
use common::msg::{ParentToRaftd, RaftdToParent};
use common::{fatal, fatalx, log_warn};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::UnixStream;

pub type Channel = Imsgbuf<RaftdToParent, ParentToRaftd>;

/// What the parent sends before STARTUP.
pub struct Startup {
    pub conf: Conf,
    pub listener: OwnedFd,
    pub control: OwnedFd,
    /// Sockets of mounts that came early.
    pub sockets: Vec<Imsg<ParentToRaftd>>,
}

/// A configuration on its way, in pieces.
#[derive(Default)]
struct Reconf {
    conf: Option<Conf>,
    peers: Vec<Peer>,
    mounts: Vec<Mount>,
}

impl Reconf {
    /// Takes one piece; the whole with the last.
    fn add(&mut self, msg: ParentToRaftd) -> Option<Conf> {
        match msg {
            ParentToRaftd::ReconfConf(conf) => {
                *self = Reconf {
                    conf: Some(conf),
                    ..Reconf::default()
                }
            }
            ParentToRaftd::ReconfPeer(peer) => self.peers.push(peer),
            ParentToRaftd::ReconfMount(mount) => self.mounts.push(mount),
            ParentToRaftd::ReconfEnd => {
                let Reconf {
                    conf,
                    peers,
                    mounts,
                } = std::mem::take(self);
                let Some(mut conf) = conf else {
                    fatalx!("dispatch_parent: IMSG_RECONF_END without IMSG_RECONF_CONF");
                };
                conf.peers = peers;
                conf.mounts = mounts;
                return Some(conf);
            }
            other => unexpected(&other),
        }
        None
    }
}

fn unexpected(msg: &ParentToRaftd) -> ! {
    use common::imsg::Message;
    fatalx!("dispatch_parent: unexpected {}", msg.name())
}

fn broken(e: ImsgError) -> ! {
    fatal!(e, "parent")
}

/// Receives all that comes before STARTUP, as root and without threads.
pub fn startup(channel: &mut Channel) -> Startup {
    let mut reconf = Reconf::default();
    let (mut conf, mut listener, mut control) = (None, None, None);
    let mut sockets = Vec::new();
    loop {
        let mut imsg = match channel.recv_blocking() {
            Ok(Some(imsg)) => imsg,
            // The parent gave up; it has said why.
            Ok(None) => std::process::exit(0),
            Err(e) => broken(e),
        };
        match &imsg.msg {
            ParentToRaftd::Listener => {
                listener = Some(imsg.take_fd().unwrap_or_else(|e| broken(e)))
            }
            ParentToRaftd::ControlFd => {
                control = Some(imsg.take_fd().unwrap_or_else(|e| broken(e)))
            }
            ParentToRaftd::SocketIpc { .. } => sockets.push(imsg),
            ParentToRaftd::LogVerbose(verbose) => log_setverbose(*verbose),
            ParentToRaftd::Startup => break,
            _ => conf = reconf.add(imsg.msg).or(conf),
        }
    }
    match (conf, listener, control) {
        (Some(conf), Some(listener), Some(control)) => Startup {
            conf,
            listener,
            control,
            sockets,
        },
        _ => fatalx!("dispatch_parent: IMSG_STARTUP before its time"),
    }
}

/// The channel to the parent once the runtime is there: read by one task,
/// written by whoever has something to say.
pub struct Parent {
    channel: Mutex<Channel>,
    socket: UnixStream,
}

impl Parent {
    pub fn new(channel: Channel) -> io::Result<Arc<Parent>> {
        use std::os::fd::AsFd;
        let socket = readiness(&channel.as_fd().try_clone_to_owned()?)?;
        Ok(Arc::new(Parent {
            channel: Mutex::new(channel),
            socket,
        }))
    }

    fn channel(&self) -> MutexGuard<'_, Channel> {
        self.channel.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Messages to the parent are small and few: the socket has room.
    pub fn send(&self, msg: &RaftdToParent) {
        let mut channel = self.channel();
        let sent = channel.compose(msg, 0, None, &[]);
        if let Err(e) = sent {
            broken(e);
        }
        if let Err(e) = channel.flush_blocking() {
            log_warn!(e, "parent");
        }
    }

    /// Serves the parent until it closes its end, which means: stop.
    pub async fn serve(
        &self,
        engine: &Arc<Engine>,
        control: &Control,
        early: Vec<Imsg<ParentToRaftd>>,
    ) {
        let mut from = Dispatch {
            reconf: Reconf::default(),
            pairs: HashMap::new(),
        };
        for imsg in early {
            from.dispatch_parent(imsg, engine, control, self);
        }
        loop {
            match read_ready(&self.socket, || self.channel().read()).await {
                Ok(ReadStatus::Closed) => return,
                Ok(_) => {}
                Err(e) => fatal!(e, "parent"),
            }
            loop {
                let imsg = self.channel().get();
                match imsg {
                    Ok(Some(imsg)) => from.dispatch_parent(imsg, engine, control, self),
                    Ok(None) => break,
                    Err(e) => broken(e),
                }
            }
        }
    }
}

struct Dispatch {
    reconf: Reconf,
    /// Sockets of mounts of which the second has not come yet.
    pairs: HashMap<MountId, Pair>,
}

impl Dispatch {
    fn dispatch_parent(
        &mut self,
        mut imsg: Imsg<ParentToRaftd>,
        engine: &Arc<Engine>,
        control: &Control,
        parent: &Parent,
    ) {
        match imsg.msg {
            ParentToRaftd::SocketIpc { mount, lane } => {
                let fd = imsg.take_fd().unwrap_or_else(|e| broken(e));
                let pair = self.pairs.entry(mount).or_default();
                if let Some((control, bulk)) = pair.add(lane, fd) {
                    self.pairs.remove(&mount);
                    engine.attach(mount, control, bulk);
                }
            }
            ParentToRaftd::LogVerbose(verbose) => log_setverbose(verbose),
            ParentToRaftd::CtlResult { client, result } => control.result(client, result),
            ParentToRaftd::Listener | ParentToRaftd::ControlFd | ParentToRaftd::Startup => {
                unexpected(&imsg.msg)
            }
            piece => {
                if let Some(conf) = self.reconf.add(piece) {
                    engine.reconf(conf);
                    parent.send(&RaftdToParent::ReconfDone);
                }
            }
        }
    }
}
