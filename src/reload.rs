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

//! A new configuration while dfsd runs.  Runs in dfsd, the parent.  It is taken
//! as a whole or not at all.

#![forbid(unsafe_code)]

use crate::{parse, Parent, Stop};
use common::conf::{Conf, Mount, MountId};
use common::ctl::CtlResult;
use common::{log_info, log_warnx};

impl Parent {
    /// After SIGHUP, or on behalf of a client of the control socket.
    pub fn reload(&mut self, client: Option<u32>) {
        if !matches!(self.stop, Stop::No) {
            return;
        }
        let Some(conf) = self.new_config() else {
            log_warnx!("reload: configuration not changed");
            if let Some(client) = client {
                self.answer(client, CtlResult::ConfigError);
            }
            return;
        };
        let old = std::mem::replace(&mut self.conf, conf);
        self.send_config();
        self.reloads.push_back(client);
        self.reload_mounts(&old.mounts);
    }

    fn new_config(&mut self) -> Option<Conf> {
        let (file, macros) = (&self.options.file, &self.options.macros);
        let mut conf = parse::parse_config(file, macros).ok()?;
        if let Some(what) = fixed(&self.conf, &conf) {
            log_warnx!("reload: {what} cannot change: restart dfsd");
            return None;
        }
        keep_ids(&self.conf.mounts, &mut conf.mounts, &mut self.next_mount);
        Some(conf)
    }

    /// A mount that has other options is detached and attached again, if it
    /// was attached; the kernel and its fused have them from birth.
    fn reload_mounts(&mut self, old: &[Mount]) {
        let new = self.conf.mounts.clone();
        for was in old {
            match new.iter().find(|m| m.id == was.id) {
                None => self.mount_stop(was.id, false),
                Some(is) if !same_mount(was, is) => self.mount_stop(was.id, true),
                Some(_) => (),
            }
        }
        let added = |m: &&Mount| m.auto && !old.iter().any(|was| was.id == m.id);
        for m in new.iter().filter(added) {
            // A failure is in the log.
            let _ = self.mount_start(m.id);
        }
    }

    /// raftd confirms in the order that it was told.
    pub fn reconf_done(&mut self) {
        // The first configuration is nobody's reload.
        let Some(client) = self.reloads.pop_front() else {
            return;
        };
        log_info!("configuration reloaded");
        if let Some(client) = client {
            self.answer(client, CtlResult::Ok);
        }
    }
}

/// What differs and cannot change while dfsd runs.
fn fixed(old: &Conf, new: &Conf) -> Option<&'static str> {
    let peers = |conf: &Conf| {
        let mut peers: Vec<_> = conf.peers.iter().map(|p| (p.id, p.addr)).collect();
        peers.sort();
        peers
    };
    let same = [
        ("cluster", old.cluster == new.cluster),
        ("node", old.node == new.node),
        ("listen", old.listen == new.listen),
        ("data", old.data == new.data),
        ("socket", old.socket == new.socket),
        ("lock lease", old.lock_lease == new.lock_lease),
        ("peer", peers(old) == peers(new)),
    ];
    let (what, _) = same.into_iter().find(|(_, same)| !same)?;
    Some(what)
}

/// But for what only matters at the start of dfsd.
fn same_mount(old: &Mount, new: &Mount) -> bool {
    let like_old = Mount {
        auto: old.auto,
        ..new.clone()
    };
    like_old == *old
}

/// raftd and mount_dfs(8) know a mount by its number: it keeps it for as long
/// as its point is in the configuration.
fn keep_ids(old: &[Mount], new: &mut [Mount], next: &mut u32) {
    for m in new.iter_mut() {
        m.id = match old.iter().find(|was| was.point == m.point) {
            Some(was) => was.id,
            None => {
                *next += 1;
                MountId(*next - 1)
            }
        };
    }
    new.sort_by_key(|m| m.id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::conf::DEFAULTS;

    fn mount(id: u32, point: &str) -> Mount {
        Mount {
            id: MountId(id),
            point: point.into(),
            subtree: DEFAULTS.subtree.into(),
            read_only: false,
            timeout: DEFAULTS.timeout,
            nosuid: true,
            nodev: true,
            noexec: false,
            noatime: false,
            strict: false,
            dirty: false,
            maxage: None,
            local_lock: false,
            async_close: false,
            auto: true,
        }
    }

    #[test]
    fn ids_stay() {
        let old = [mount(0, "/a"), mount(3, "/b")];
        let mut next = 5;
        let mut new = [mount(0, "/new"), mount(1, "/b"), mount(2, "/other")];
        keep_ids(&old, &mut new, &mut next);
        let got: Vec<_> = new.iter().map(|m| (m.id.0, m.point.to_str())).collect();
        assert_eq!(
            got,
            [(3, Some("/b")), (5, Some("/new")), (6, Some("/other"))]
        );
        assert_eq!(next, 7);
    }

    #[test]
    fn options_that_need_a_new_mount() {
        let old = mount(0, "/a");
        let mut new = old.clone();
        new.auto = false;
        assert!(same_mount(&old, &new));
        new.timeout *= 2;
        assert!(!same_mount(&old, &new));
    }
}
