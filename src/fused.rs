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

//! The mounts and their processes: a fused for each one that is attached, what
//! comes from it, and what becomes of its end.  Runs in dfsd, the parent; it
//! never touches a mounted point.
//!
//! ```text
//!              start            Ready
//!   Detached --------> Running --------> Running, serving
//!      ^                |    ^               |       |
//!      |    lost child  v    | back-off      |       | stop: detached,
//!      |               Lost -+ <-------------+       v or LINGER and killed
//!      +----------------|------------------------ Stopping
//!                stop   v
//! ```
//!
//! In Lost the dead mount stays, so that nobody writes into the bare
//! directory; a successor takes its place between two system calls.
//!
//! A fused that is killed, or exits, may not end by itself: a thread of it can
//! wait in the kernel for a directory's lock, held by a program that waits for
//! this very fused, and wait(2) tells nothing until that thread has gone.  So
//! each kill goes with an abort of the mount, which frees both, and each fused
//! is looked at now and then.

#![forbid(unsafe_code)]

use crate::child::Child;
use crate::mount::{self, Found};
use crate::Parent;
use common::conf::{Mount, MountId};
use common::ctl::{CtlAttach, CtlResult};
use common::log::reason;
use common::msg::{FusedToParent, Lane, ParentToFused, ParentToRaftd, BULK_BUF, CONTROL_BUF};
use common::proc::{Exit, Pid};
use common::sys::socket::{set_bufs, socketpair};
use common::{log_info, log_warnx};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A fused that has not answered the kernel's first request by then will not.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long a fused may go on for those who use a mount that is stopped.
const LINGER: Duration = Duration::from_secs(2);
/// How often it is seen to that a fused has not died unnoticed.
const LOOK: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

type Fused = Child<ParentToFused, FusedToParent>;

/// One mount of dfsd.conf.
pub struct Slot {
    point: PathBuf,
    state: State,
    backoff: Duration,
    /// Clients who wait for the end of the start or the stop.
    clients: Vec<u32>,
}

enum State {
    Detached,
    Running {
        fused: Fused,
        since: Instant,
        serving: bool,
        look_at: Instant,
    },
    Stopping {
        fused: Fused,
        kill_at: Instant,
        start_again: bool,
    },
    Lost {
        retry_at: Instant,
    },
}

impl Slot {
    pub fn new(point: &Path) -> Slot {
        Slot {
            point: point.into(),
            state: State::Detached,
            backoff: BACKOFF_MIN,
            clients: Vec::new(),
        }
    }

    pub fn fused(&self) -> Option<&Fused> {
        match &self.state {
            State::Running { fused, .. } | State::Stopping { fused, .. } => Some(fused),
            State::Detached | State::Lost { .. } => None,
        }
    }

    pub fn fused_mut(&mut self) -> Option<&mut Fused> {
        match &mut self.state {
            State::Running { fused, .. } | State::Stopping { fused, .. } => Some(fused),
            State::Detached | State::Lost { .. } => None,
        }
    }

    pub fn is_detached(&self) -> bool {
        matches!(self.state, State::Detached)
    }

    /// When `mount_timers` wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Running { look_at, .. } => Some(*look_at),
            State::Stopping { kill_at, .. } => Some(*kill_at),
            State::Lost { retry_at } => Some(*retry_at),
            State::Detached => None,
        }
    }

    /// The mount stays, dead, and whoever waits for its fused is freed.
    pub fn kill(&self) {
        if let Some(fused) = self.fused() {
            fused.kill();
            self.abort();
        }
    }

    /// What follows from a kill or an abort comes with the end of the fused.
    fn look(&mut self, now: Instant) {
        let State::Running {
            fused,
            since,
            serving,
            ..
        } = &mut self.state
        else {
            return;
        };
        if fused.is_zombie() {
            self.abort();
        } else if !*serving && *since + START_LIMIT <= now {
            *since = now;
            let point = self.point.display();
            log_warnx!("mount {point}: fused does not start: killed");
            self.kill();
        }
    }

    fn abort(&self) {
        self.say("abort", mount::abort(&self.point));
    }

    fn detach(&self) {
        self.say("unmount", mount::detach(&self.point));
    }

    fn say(&self, what: &str, result: io::Result<()>) {
        if let Err(e) = result {
            log_warnx!("mount {}: {what}: {}", self.point.display(), reason(&e));
        }
    }

    /// After `since` a start failed or a fused was lost.
    fn lost(&mut self, since: Instant) {
        if since.elapsed() > 2 * BACKOFF_MAX {
            self.backoff = BACKOFF_MIN;
        }
        let retry_at = Instant::now() + self.backoff;
        self.backoff = BACKOFF_MAX.min(2 * self.backoff);
        self.state = State::Lost { retry_at };
    }
}

impl Parent {
    /// Starts a fused for a mount that has none.  A failure is logged, and
    /// tried again if there was one before.
    pub fn mount_start(&mut self, id: MountId) -> Result<(), CtlResult> {
        let Some(m) = self.conf.mount(id).cloned() else {
            return Err(CtlResult::NoSuchMount);
        };
        let started = self.start_fused(&m);
        let slot = self.mounts.entry(id).or_insert_with(|| Slot::new(&m.point));
        match started {
            Ok(fused) => {
                slot.point = m.point;
                let since = Instant::now();
                slot.state = State::Running {
                    fused,
                    since,
                    serving: false,
                    look_at: since + LOOK,
                };
                Ok(())
            }
            Err(e) => {
                log_warnx!("mount {}: {e}", slot.point.display());
                if let State::Lost { .. } = slot.state {
                    slot.lost(Instant::now());
                }
                Err(CtlResult::MountFailed)
            }
        }
    }

    /// All that can fail comes before the old mount, if there is one, goes.
    fn start_fused(&mut self, m: &Mount) -> Result<Fused, String> {
        let say = |what: &'static str| move |e: io::Error| format!("{what}: {}", reason(&e));
        let found = mount::check(&m.point)?;
        let device = mount::open_device().map_err(say("FUSE device"))?;
        let mut fused = Fused::start("fused", self.options.debug)?;
        fused.send(ParentToFused::ReconfMount(m.clone()), None);
        for (lane, bytes) in [(Lane::Control, CONTROL_BUF), (Lane::Bulk, BULK_BUF)] {
            let (ours, theirs) = lane_pair(bytes).map_err(say("socketpair"))?;
            fused.send(ParentToFused::SocketIpc { lane }, Some(ours));
            let msg = ParentToRaftd::SocketIpc { mount: m.id, lane };
            self.raftd.send(msg, Some(theirs));
        }
        let cluster = &self.conf.cluster;
        if found == Found::Dfsd {
            log_info!("mount {}: replacing a dead mount", m.point.display());
            mount::replace(device.as_fd(), cluster, m)?;
        } else {
            mount::attach(device.as_fd(), cluster, m).map_err(say("mount"))?;
        }
        fused.send(ParentToFused::FuseFd, Some(device));
        fused.send(ParentToFused::Startup, None);
        Ok(fused)
    }

    /// On behalf of mount_dfs(8), which is answered when the mount serves.
    pub fn ctl_mount(&mut self, client: u32, attach: CtlAttach) {
        let id = attach.mount;
        if let Some(narrow) = self.conf.mount(id).and_then(|m| attach.wider(m)) {
            return self.answer(client, CtlResult::Wider(narrow));
        }
        let slot = self.mounts.get_mut(&id);
        let result = match slot.as_ref().map(|slot| &slot.state) {
            Some(State::Running { .. }) => Err(CtlResult::AlreadyMounted),
            Some(State::Stopping { .. }) => Err(CtlResult::Failed),
            Some(State::Detached | State::Lost { .. }) | None => self.mount_start(id),
        };
        match (result, self.mounts.get_mut(&id)) {
            (Ok(()), Some(slot)) => slot.clients.push(client),
            (Ok(()), None) => self.answer(client, CtlResult::Failed),
            (Err(result), _) => self.answer(client, result),
        }
    }

    /// Answered when the mount is detached and its fused has ended.
    pub fn ctl_umount(&mut self, client: u32, id: MountId) {
        if self.conf.mount(id).is_none() {
            return self.answer(client, CtlResult::NoSuchMount);
        }
        if self.mounts.get(&id).is_none_or(Slot::is_detached) {
            return self.answer(client, CtlResult::NotMounted);
        }
        self.mount_stop(id, false);
        match self.mounts.get_mut(&id) {
            Some(slot) if !slot.is_detached() => slot.clients.push(client),
            _ => self.answer(client, CtlResult::Ok),
        }
    }

    /// Detaches a mount and ends its fused, which then may start again with
    /// another configuration.  One in use stays attached until its fused is
    /// killed: without the name there is no way to abort it.
    pub fn mount_stop(&mut self, id: MountId, start_again: bool) {
        let Some(slot) = self.mounts.get_mut(&id) else {
            return;
        };
        match std::mem::replace(&mut slot.state, State::Detached) {
            State::Detached => self.forget_removed(id),
            State::Lost { .. } => self.mount_stopped(id, start_again),
            State::Running { fused, .. } => {
                let mut kill_at = Instant::now();
                if mount::DETACH_IS_LOCAL {
                    slot.say("unmount", mount::detach_unused(&slot.point));
                    kill_at += LINGER;
                }
                slot.state = State::Stopping {
                    fused,
                    kill_at,
                    start_again,
                };
                // Who waits for the start waits no longer.
                self.mount_answer(id, CtlResult::Failed);
            }
            State::Stopping { fused, kill_at, .. } => {
                slot.state = State::Stopping {
                    fused,
                    kill_at,
                    start_again,
                };
            }
        }
    }

    fn mount_stopped(&mut self, id: MountId, start_again: bool) {
        let Some(slot) = self.mounts.get_mut(&id) else {
            return;
        };
        slot.state = State::Detached;
        slot.backoff = BACKOFF_MIN;
        slot.detach();
        log_info!("mount {}: detached", slot.point.display());
        self.mount_answer(id, CtlResult::Ok);
        self.forget_removed(id);
        if start_again && self.mounts.contains_key(&id) {
            // A failure is in the log.
            let _ = self.mount_start(id);
        }
    }

    /// A mount that a reload has taken away is gone when it is detached.
    fn forget_removed(&mut self, id: MountId) {
        if self.conf.mount(id).is_none() {
            self.mounts.remove(&id);
        }
    }

    fn mount_answer(&mut self, id: MountId, result: CtlResult) {
        let clients = match self.mounts.get_mut(&id) {
            Some(slot) => std::mem::take(&mut slot.clients),
            None => return,
        };
        for client in clients {
            self.answer(client, result);
        }
    }

    /// Kills, starts and gives up what is due.
    pub fn mount_timers(&mut self, now: Instant) {
        let due = |slot: &Slot| slot.deadline().is_some_and(|at| at <= now);
        let ids: Vec<MountId> = self
            .mounts
            .iter()
            .filter(|(_, slot)| due(slot))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            let Some(slot) = self.mounts.get_mut(&id) else {
                continue;
            };
            match &mut slot.state {
                State::Detached => (),
                State::Running { look_at, .. } => {
                    *look_at = now + LOOK;
                    slot.look(now);
                }
                State::Stopping { kill_at, .. } => {
                    *kill_at = now + LINGER;
                    slot.kill();
                }
                State::Lost { .. } => {
                    let _ = self.mount_start(id);
                }
            }
        }
    }

    /// False when it was no fused.
    pub fn fused_ended(&mut self, pid: Pid, exit: Exit) -> bool {
        let is_it = |slot: &Slot| slot.fused().is_some_and(|fused| fused.pid == pid);
        let Some((&id, slot)) = self.mounts.iter_mut().find(|(_, slot)| is_it(slot)) else {
            return false;
        };
        match std::mem::replace(&mut slot.state, State::Detached) {
            State::Stopping { start_again, .. } => self.mount_stopped(id, start_again),
            State::Running { since, .. } => self.fused_lost(id, exit, since),
            State::Detached | State::Lost { .. } => (),
        }
        true
    }

    /// Not ordered.  When the mount has gone as well, umount(8) did it.
    fn fused_lost(&mut self, id: MountId, exit: Exit, since: Instant) {
        let Some(slot) = self.mounts.get_mut(&id) else {
            return;
        };
        let point = slot.point.display();
        let mounted = mount::look(&slot.point).is_ok_and(|found| found == Found::Dfsd);
        if !mounted && exit == Exit::Exited(0) {
            log_info!("mount {point}: detached");
        } else {
            log_warnx!("lost child: fused {point} {exit}");
        }
        if !mounted {
            return self.mount_answer(id, CtlResult::MountFailed);
        }
        if slot.clients.is_empty() {
            return slot.lost(since);
        }
        // Somebody waits for the start and is told: then nothing goes on
        // behind his back.
        slot.detach();
        self.mount_answer(id, CtlResult::MountFailed);
    }

    pub fn dispatch_fused(&mut self, id: MountId) {
        let Some(slot) = self.mounts.get_mut(&id) else {
            return;
        };
        let Some(fused) = slot.fused_mut() else {
            return;
        };
        for msg in fused.receive() {
            match msg {
                FusedToParent::Ready => self.fused_ready(id),
            }
        }
    }

    fn fused_ready(&mut self, id: MountId) {
        let Some(slot) = self.mounts.get_mut(&id) else {
            return;
        };
        if let State::Running { serving, .. } = &mut slot.state {
            *serving = true;
            log_info!("mount {}: serving", slot.point.display());
            self.mount_answer(id, CtlResult::Ok);
        }
    }
}

fn lane_pair(bytes: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socketpair()?;
    set_bufs(a.as_fd(), bytes)?;
    set_bufs(b.as_fd(), bytes)?;
    Ok((a, b))
}
