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

//! Threads whose call the kernel tries once more, because it was told ESTALE.
//! fused only.
//!
//! The second ESTALE the program would see.  A name that others replace again
//! and again could always have moved on between the kernel's LOOKUP and what it
//! asks of the inode next.  So while a thread is in here its LOOKUPs are made
//! behind a barrier, and hold what they find: that was the name's meaning while
//! the program's call was under way, which is all that it may ask for.

#![forbid(unsafe_code)]

use common::fs::InodeNo;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The kernel tries again at once.
pub const RETRY: Duration = Duration::from_secs(2);
/// More threads than this have no business here at a time.
const RETRIES_MAX: usize = 4096;

struct Retry {
    until: Instant,
    /// The call has looked a name up since.
    looked: bool,
    held: Vec<InodeNo>,
    /// Directories in which its call failed.
    failed: Vec<InodeNo>,
}

/// By the number of the thread, as the kernel tells it.
#[derive(Default)]
pub struct Retries(HashMap<u32, Retry>);

impl Retries {
    /// The thread is told ESTALE.  0 is one of whom the kernel cannot tell.
    pub fn begin(&mut self, pid: u32, now: Instant) {
        if self.0.len() >= RETRIES_MAX {
            self.0.retain(|_, retry| retry.until > now);
        }
        if pid != 0 && self.0.len() < RETRIES_MAX {
            let retry = self.0.entry(pid).or_insert(Retry {
                until: now,
                looked: false,
                held: Vec::new(),
                failed: Vec::new(),
            });
            retry.until = now + RETRY;
            retry.looked = false;
        }
    }

    /// The thread is told ESTALE by a LOOKUP in this directory.
    pub fn begin_looking(&mut self, pid: u32, dir: InodeNo, now: Instant) {
        self.begin(pid, now);
        self.looks(pid, now);
        if let Some(retry) = self.0.get_mut(&pid) {
            retry.failed = vec![dir];
        }
    }

    /// Whether the call comes to this directory again, so not by a name.
    pub fn has_failed_in(&self, pid: u32, dir: InodeNo, now: Instant) -> bool {
        let retry = self.0.get(&pid).filter(|retry| retry.until > now);
        retry.is_some_and(|retry| retry.failed.contains(&dir))
    }

    /// A call for names in these directories has failed because one is gone.
    /// True if it shall be tried again; not if that was found by this call, or
    /// is where the program works.
    pub fn begin_in(&mut self, pid: u32, dirs: &[InodeNo], now: Instant) -> bool {
        let retry = self.0.get(&pid).filter(|retry| retry.until > now);
        let is_known = |retry: &Retry| {
            let mut known = retry.held.iter().chain(&retry.failed);
            known.any(|dir| dirs.contains(dir))
        };
        if retry.is_some_and(is_known) {
            self.end(pid);
            return false;
        }
        self.begin(pid, now);
        if let Some(retry) = self.0.get_mut(&pid) {
            retry.failed = dirs.to_vec();
        }
        true
    }

    /// The thread looks a name up; true if it tries a call again.
    pub fn looks(&mut self, pid: u32, now: Instant) -> bool {
        match self.0.get_mut(&pid).filter(|retry| retry.until > now) {
            Some(retry) => {
                retry.looked = true;
                true
            }
            None => false,
        }
    }

    /// A LOOKUP of the thread holds the inode; to be let go of later.
    pub fn held(&mut self, pid: u32, ino: InodeNo) {
        if let Some(retry) = self.0.get_mut(&pid) {
            retry.held.push(ino);
        }
    }

    /// Whether a LOOKUP of the call that the thread is in has found this inode;
    /// or the call has made none, and so goes by no name, as of /proc/self/fd.
    pub fn may_open(&self, pid: u32, ino: InodeNo, now: Instant) -> bool {
        let retry = self.0.get(&pid).filter(|retry| retry.until > now);
        retry.is_some_and(|retry| !retry.looked || retry.held.contains(&ino))
    }

    /// The call is over: the next one of the thread begins anew.
    pub fn end(&mut self, pid: u32) {
        self.0.remove(&pid);
    }

    /// The inode is let go of, once.
    pub fn let_go(&mut self, pid: u32, ino: InodeNo, now: Instant) {
        let Some(retry) = self.0.get_mut(&pid) else {
            return;
        };
        if let Some(at) = retry.held.iter().position(|held| *held == ino) {
            retry.held.swap_remove(at);
        }
        if retry.held.is_empty() && retry.until <= now {
            self.0.remove(&pid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_directories_that_are_gone() {
        let mut retries = Retries::default();
        let (now, a, b) = (Instant::now(), InodeNo(7), InodeNo(8));
        assert!(retries.begin_in(1, &[a], now), "maybe by an old name");
        assert!(!retries.begin_in(1, &[a], now), "it works in there");
        assert!(retries.begin_in(1, &[a], now), "another call");
        retries.held(1, b);
        assert!(!retries.begin_in(1, &[b, a], now), "found by the call");
        assert!(retries.begin_in(1, &[a], now));
        assert!(retries.begin_in(1, &[b], now), "found by an old name again");
        assert!(retries.begin_in(1, &[b], now + RETRY));
        assert!(retries.begin_in(0, &[a], now) && retries.begin_in(0, &[a], now));
    }

    #[test]
    fn a_thread_tries_again() {
        let mut retries = Retries::default();
        let (now, ino) = (Instant::now(), InodeNo(7));
        retries.begin(0, now);
        assert!(!retries.looks(0, now));
        retries.held(1, ino);
        assert!(!retries.may_open(1, ino, now), "it does not try again");
        retries.begin(1, now);
        assert!(retries.may_open(1, ino, now), "by no name");
        assert!(retries.looks(1, now) && !retries.looks(2, now));
        assert!(!retries.may_open(1, ino, now), "a name that is not there");
        retries.held(1, ino);
        retries.held(1, ino);
        retries.let_go(1, ino, now);
        assert!(retries.may_open(1, ino, now) && !retries.may_open(1, InodeNo(8), now));
        assert!(!retries.looks(1, now + RETRY));
        assert!(!retries.may_open(1, ino, now + RETRY));
        retries.begin(1, now);
        assert!(
            retries.may_open(1, InodeNo(8), now),
            "another call, by no name"
        );
        retries.let_go(1, ino, now + RETRY);
        assert!(retries.0.is_empty());
        retries.begin_looking(1, InodeNo(9), now);
        assert!(retries.has_failed_in(1, InodeNo(9), now) && !retries.has_failed_in(1, ino, now));
        assert!(!retries.may_open(1, ino, now), "found by no LOOKUP");
        retries.end(1);
        assert!(!retries.may_open(1, ino, now) && !retries.looks(1, now));
        retries.let_go(1, ino, now);
    }
}
