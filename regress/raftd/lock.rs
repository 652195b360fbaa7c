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

//! File locks on a real store: ranges as POSIX has them, who is next, circles
//! of waiters, sessions that end or lose their lease.  A long random run is
//! held against a table of single bytes, and against what the store keeps of
//! each lock in other places.

use crate::dir::Dir;
use bytes::Bytes;
use common::fs::*;
use common::lock::{LockKind, LockRange};
use raftd::fs::apply::{apply, init};
use raftd::fs::lock::{self, Locks, Owner, Wish, INODE_MAX, LOCKS_MAX};
use raftd::fs::op::{Check, Command, Op, Origin, WriteAt};
use raftd::fs::{Change, Effects, Outcome, Reply, Verdict};
use raftd::payload::Payload;
use raftd::store::meta::Meta;
use std::collections::BTreeMap;
use std::time::Duration;
use LockKind::{Exclusive, Shared};

mod dir;

const MAP: usize = 1 << 30;
const LEASE: Duration = Duration::from_secs(10);

/// One node's tree with some files, and two sessions with their streams.
struct Tree {
    meta: Meta,
    index: u64,
    files: Vec<InodeNo>,
    sessions: Vec<(SessionId, u64)>,
    _dir: Dir,
}

/// Who asks: the session's place, the mount, the owner.
type Who = (usize, u64, u64);

const A: Who = (0, 0, 1);
const B: Who = (1, 0, 1);
/// The same number of another mount is somebody else.
const C: Who = (1, 1, 1);
const D: Who = (0, 0, 2);

fn range(start: u64, end: u64) -> LockRange {
    LockRange { start, end }
}

impl Tree {
    fn new() -> Tree {
        let dir = Dir::new("lock");
        let meta = Meta::open(&dir.0, MAP).unwrap();
        init(&mut meta.write()).unwrap();
        let mut t = Tree {
            meta,
            index: 0,
            files: Vec::new(),
            sessions: Vec::new(),
            _dir: dir,
        };
        for node in 0..2 {
            t.open_session(node, 1);
        }
        for name in ["a", "b", "c"] {
            t.make(name);
        }
        t
    }

    fn make(&mut self, name: &str) {
        let op = Op::Create {
            parent: InodeNo::ROOT,
            name: name.into(),
            mode: S_IFREG | 0o644,
            umask: 0,
            excl: true,
            cred: Cred::default(),
        };
        match self.free(op).0 {
            Ok(Reply::Entry { attr, .. }) => self.files.push(attr.ino),
            other => panic!("{other:?}"),
        }
    }

    fn apply(&mut self, origin: Option<Origin>, op: Op, payload: Payload) -> (Verdict, Effects) {
        self.index += 1;
        let time = Time::default();
        let cmd = Command {
            origin,
            time,
            op,
            payload,
        };
        apply(&mut self.meta.write(), self.index, &cmd).unwrap()
    }

    /// Without a session.
    fn free(&mut self, op: Op) -> (Outcome, Effects) {
        match self.apply(None, op, Payload::none()) {
            (Verdict::Done(outcome), effects) => (outcome, effects),
            other => panic!("{other:?}"),
        }
    }

    fn open_session(&mut self, at: usize, nonce: u64) -> Effects {
        let node = NodeId(at as u64 + 1);
        let (outcome, effects) = self.free(Op::OpenSession {
            node,
            nonce,
            lease: LEASE,
        });
        assert_eq!(outcome, Ok(Reply::Session));
        self.sessions.truncate(at.max(self.sessions.len()));
        let session = (SessionId(self.index), 0);
        match self.sessions.get_mut(at) {
            Some(s) => *s = session,
            None => self.sessions.push(session),
        }
        effects
    }

    fn by(&mut self, session: usize, op: Op) -> (Outcome, Vec<Change>) {
        self.with(session, op, Payload::none())
    }

    fn with(&mut self, session: usize, op: Op, payload: Payload) -> (Outcome, Vec<Change>) {
        let (id, last) = &mut self.sessions[session];
        *last += 1;
        let origin = Origin {
            session: *id,
            seq: *last,
            acked: *last - 1,
        };
        match self.apply(Some(origin), op, payload) {
            (Verdict::Done(outcome), effects) => (outcome, effects.changes),
            other => panic!("{other:?}"),
        }
    }

    fn owner(&self, who: Who) -> Owner {
        Owner {
            session: self.sessions[who.0].0,
            mount: who.1,
            id: who.2,
        }
    }

    fn lock(
        &mut self,
        who: Who,
        file: usize,
        range: LockRange,
        kind: LockKind,
        wait: bool,
    ) -> (Outcome, Vec<Change>) {
        let wish = Wish {
            owner: who.2,
            pid: 100 + who.2 as u32,
            range,
            kind,
        };
        let op = Op::Lock {
            ino: self.files[file],
            mount: who.1,
            wish,
            wait,
        };
        self.by(who.0, op)
    }

    /// Held at once, with nobody else let in.
    fn locks(&mut self, who: Who, file: usize, range: LockRange, kind: LockKind) {
        let (outcome, changes) = self.lock(who, file, range, kind, false);
        assert_eq!(outcome, Ok(Reply::Locked { fence: self.index }));
        assert_eq!(changes, []);
    }

    /// The ticket.
    fn waits(&mut self, who: Who, file: usize, range: LockRange, kind: LockKind) -> u64 {
        let ticket = self.index + 1;
        let (outcome, changes) = self.lock(who, file, range, kind, true);
        assert_eq!(outcome, Ok(Reply::Waiting { ticket }));
        assert_eq!(changes, []);
        ticket
    }

    fn unlock(&mut self, who: Who, file: usize, range: LockRange) -> Vec<Change> {
        let op = Op::Unlock {
            ino: self.files[file],
            mount: who.1,
            owner: who.2,
            range,
        };
        let (outcome, changes) = self.by(who.0, op);
        assert_eq!(outcome, Ok(Reply::Done));
        changes
    }

    fn got(&self, who: Who, ticket: u64) -> Change {
        Change::Waited {
            session: self.sessions[who.0].0,
            ticket,
            result: Ok(self.index),
        }
    }

    fn table(&self, file: usize) -> Locks {
        lock::get(&self.meta.read(), self.files[file]).unwrap()
    }

    /// What an owner holds, in order.
    fn held(&self, who: Who, file: usize) -> Vec<(u64, u64, LockKind)> {
        let held = self.table(file).held.into_iter();
        let own = held.filter(|l| l.owner == self.owner(who));
        let mut own: Vec<_> = own.map(|l| (l.range.start, l.range.end, l.kind)).collect();
        own.sort_by_key(|l| l.0);
        own
    }

    fn keys(&self, tags: &[u8]) -> usize {
        let v = self.meta.read();
        let all = v.range(&[], &[]).unwrap().map(|item| item.unwrap().0[0]);
        all.filter(|tag| tags.contains(tag)).count()
    }

    /// What is kept beside the locks is of those that are there.
    fn check(&self) {
        let v = self.meta.read();
        let all = lock::list(&v).unwrap();
        let mut members = BTreeMap::new();
        let (mut waiting, mut count) = (0, 0);
        for (ino, locks) in &all {
            assert!(locks.held.len() + locks.waiting.len() > 0);
            for (i, a) in locks.held.iter().enumerate() {
                for b in &locks.held[i + 1..] {
                    let apart = !a.range.overlaps(&b.range);
                    let both = a.kind == Shared && b.kind == Shared;
                    assert!(apart || a.owner != b.owner && both, "{a:?} {b:?}");
                }
            }
            for w in &locks.waiting {
                let blocked = locks.held.iter().any(|h| {
                    h.owner != w.owner
                        && h.range.overlaps(&w.range)
                        && (h.kind == Exclusive || w.kind == Exclusive)
                });
                assert!(blocked, "could have it: {w:?}");
            }
            for l in locks.held.iter().chain(&locks.waiting) {
                members.insert((l.owner.session, l.owner.mount, *ino), ());
            }
            waiting += locks.waiting.len();
            count += locks.held.len() + locks.waiting.len();
        }
        drop(v);
        assert_eq!(self.keys(b"l"), all.len());
        assert_eq!(self.keys(b"w"), members.len());
        assert_eq!(self.keys(b"v"), waiting);
        assert_eq!(self.keys(b"n"), usize::from(count > 0));
    }
}

#[test]
fn ranges_of_one_owner() {
    let mut t = Tree::new();
    t.locks(A, 0, range(0, 99), Exclusive);
    assert!(t.unlock(A, 0, range(40, 59)).is_empty());
    assert_eq!(t.held(A, 0), [(0, 39, Exclusive), (60, 99, Exclusive)]);
    t.locks(A, 0, range(40, 59), Exclusive);
    assert_eq!(t.held(A, 0), [(0, 99, Exclusive)]);
    t.locks(A, 0, range(100, 199), Exclusive);
    assert_eq!(t.held(A, 0), [(0, 199, Exclusive)]);
    t.locks(A, 0, range(50, 59), Shared);
    assert_eq!(
        t.held(A, 0),
        [(0, 49, Exclusive), (50, 59, Shared), (60, 199, Exclusive)]
    );
    t.locks(A, 0, range(10, 300), Shared);
    assert_eq!(t.held(A, 0), [(0, 9, Exclusive), (10, 300, Shared)]);
    t.locks(A, 0, range(0, u64::MAX), Exclusive);
    assert_eq!(t.held(A, 0), [(0, u64::MAX, Exclusive)]);
    t.check();
    // What is not locked is unlocked already, and of others nothing is.
    assert!(t.unlock(B, 0, range(0, u64::MAX)).is_empty());
    assert!(t.unlock(A, 1, range(0, u64::MAX)).is_empty());
    assert!(t.unlock(A, 0, range(0, u64::MAX)).is_empty());
    assert_eq!(t.table(0), Locks::default());
    t.check();
    let (outcome, _) = t.lock(A, 0, range(5, 4), Shared, true);
    assert_eq!(outcome, Err(FsError::Invalid));
}

#[test]
fn owners_exclude_each_other() {
    let mut t = Tree::new();
    t.locks(A, 0, range(0, 9), Shared);
    t.locks(B, 0, range(5, 20), Shared);
    for who in [A, B, C, D] {
        let (outcome, _) = t.lock(who, 0, range(0, 99), Exclusive, false);
        assert_eq!(outcome, Err(FsError::WouldBlock));
    }
    let wish = |who: Who, kind| Wish {
        owner: who.2,
        pid: 0,
        range: range(0, 99),
        kind,
    };
    let test = |t: &Tree, who: Who, kind| {
        let (owner, wish) = (t.owner(who), wish(who, kind));
        lock::test(&t.meta.read(), t.files[0], owner, &wish).unwrap()
    };
    assert_eq!(test(&t, C, Shared), None);
    assert_eq!(test(&t, B, Exclusive).unwrap().owner, t.owner(A));
    assert_eq!(test(&t, A, Exclusive).unwrap().range, range(5, 20));
    // A refused lock leaves what its owner had.
    assert_eq!(t.held(A, 0), [(0, 9, Shared)]);
    t.locks(A, 0, range(0, 4), Exclusive);
    t.locks(D, 1, range(0, 4), Exclusive);
    t.check();
}

#[test]
fn waiters_come_in_their_order() {
    let mut t = Tree::new();
    let all = range(0, u64::MAX);
    t.locks(A, 0, all, Exclusive);
    let fence = t.index;
    let b = t.waits(B, 0, all, Exclusive);
    let c = t.waits(C, 0, range(0, 9), Shared);
    let d = t.waits(D, 0, range(5, 30), Shared);
    assert_eq!(t.unlock(A, 0, range(20, 30)), []);
    assert_eq!(t.unlock(A, 0, range(0, 9)), [t.got(C, c)]);
    assert_eq!(t.unlock(A, 0, all), [t.got(D, d)]);
    assert_eq!(t.unlock(C, 0, all), []);
    assert_eq!(t.unlock(D, 0, all), [t.got(B, b)]);
    assert_eq!(t.table(0).held[0].index, t.index);
    assert!(t.index > fence);
    t.check();
    // Two that can both have it do, and a lock that becomes a shared one
    // lets others in.
    let c = t.waits(C, 0, all, Shared);
    let d = t.waits(D, 0, all, Shared);
    let (outcome, changes) = t.lock(B, 0, all, Shared, true);
    assert_eq!(outcome, Ok(Reply::Locked { fence: t.index }));
    assert_eq!(changes, [t.got(C, c), t.got(D, d)]);
    // A waiter who upgrades keeps what he has meanwhile.
    let b = t.waits(B, 0, all, Exclusive);
    assert_eq!(t.held(B, 0), [(0, u64::MAX, Shared)]);
    assert_eq!(t.unlock(C, 0, all), []);
    assert_eq!(t.unlock(D, 0, all), [t.got(B, b)]);
    assert_eq!(t.held(B, 0), [(0, u64::MAX, Exclusive)]);
    t.check();
}

#[test]
fn nobody_waits_for_himself() {
    let mut t = Tree::new();
    let all = LockRange::WHOLE;
    t.locks(A, 0, all, Exclusive);
    t.locks(B, 1, all, Exclusive);
    t.locks(C, 2, all, Exclusive);
    // Two.
    let a = t.waits(A, 1, all, Shared);
    let (outcome, _) = t.lock(B, 0, all, Exclusive, true);
    assert_eq!(outcome, Err(FsError::Deadlock));
    let (outcome, _) = t.lock(B, 0, all, Exclusive, false);
    assert_eq!(outcome, Err(FsError::WouldBlock));
    // Three: A waits for B, B for C.
    t.waits(B, 2, range(5, 5), Exclusive);
    let (outcome, _) = t.lock(C, 0, all, Shared, true);
    assert_eq!(outcome, Err(FsError::Deadlock));
    // D holds nothing, so nobody waits for him.
    let d = t.waits(D, 0, all, Exclusive);
    t.check();
    assert_eq!(t.unlock(B, 1, all), [t.got(A, a)]);
    // C may now: A waits no more.
    let c = t.waits(C, 0, range(0, 0), Exclusive);
    assert_eq!(t.unlock(A, 0, range(1, u64::MAX)), []);
    assert_eq!(t.unlock(A, 0, all), [t.got(D, d)]);
    assert_eq!(t.unlock(D, 0, all), [t.got(C, c)]);
    t.check();
    // Two readers who both want to write.
    let mut t = Tree::new();
    t.locks(A, 0, all, Shared);
    t.locks(B, 0, all, Shared);
    let a = t.waits(A, 0, all, Exclusive);
    let (outcome, _) = t.lock(B, 0, all, Exclusive, true);
    assert_eq!(outcome, Err(FsError::Deadlock));
    assert_eq!(t.unlock(B, 0, all), [t.got(A, a)]);
}

#[test]
fn mounts_and_sessions_end() {
    let mut t = Tree::new();
    let all = LockRange::WHOLE;
    t.locks(B, 0, all, Exclusive);
    t.locks(C, 1, all, Exclusive);
    t.waits(B, 1, all, Shared);
    let a = t.waits(A, 1, all, Exclusive);
    let a0 = t.waits(A, 0, all, Exclusive);
    // C's mount: B was first.
    let (outcome, changes) = t.by(1, Op::UnlockMount { mount: 1 });
    assert_eq!(outcome, Ok(Reply::Done));
    assert!(matches!(
        changes[..],
        [Change::Waited { result: Ok(_), .. }]
    ));
    assert_eq!(t.held(B, 1), [(0, all.end, Shared)]);
    t.check();
    // The node of B and C starts again.
    let effects = t.open_session(1, 2);
    let got = [t.got(A, a0), t.got(A, a)];
    assert!(got.iter().all(|g| effects.changes.contains(g)));
    t.check();
    let (outcome, _) = t.by(0, Op::UnlockMount { mount: 0 });
    assert_eq!(outcome, Ok(Reply::Done));
    assert_eq!(t.keys(b"lwvfn"), 0);
}

#[test]
fn a_lease_runs_out() {
    let mut t = Tree::new();
    let all = LockRange::WHOLE;
    t.locks(B, 0, all, Exclusive);
    t.locks(C, 1, range(0, 0), Shared);
    t.locks(D, 2, all, Exclusive);
    let b = t.waits(B, 2, all, Exclusive);
    let a = t.waits(A, 0, all, Exclusive);
    let session = t.sessions[1].0;
    // Nobody can do that to himself, or in another's name.
    let (outcome, _) = t.by(0, Op::ExpireLocks { session });
    assert_eq!(outcome, Err(FsError::Invalid));

    let (outcome, effects) = t.free(Op::ExpireLocks { session });
    assert_eq!(outcome, Ok(Reply::Done));
    let lost = Change::LocksLost {
        session,
        locks: vec![(t.files[0], 0, 1), (t.files[1], 1, 1)],
    };
    let failed = Change::Waited {
        session,
        ticket: b,
        result: Err(FsError::Io),
    };
    for change in [lost, failed, t.got(A, a)] {
        assert!(effects.changes.contains(&change), "{change:?}");
    }
    assert_eq!(effects.changes.len(), 3);
    t.check();

    // What it writes there was meant to be under the lock.
    let write = |t: &mut Tree, session: usize, file: usize| {
        let op = Op::Write {
            ino: t.files[file],
            at: WriteAt::Offset(0),
            kill_priv: false,
        };
        let bytes = Payload::new(Bytes::from_static(b"x"));
        t.with(session, op, bytes).0.map(drop)
    };
    let truncate = |t: &Tree, file: usize| Op::Setattr {
        ino: t.files[file],
        set: SetAttr {
            size: Some(9),
            ..SetAttr::default()
        },
        check: Check::Kernel,
    };
    assert_eq!(write(&mut t, 1, 0), Err(FsError::Io));
    assert_eq!(write(&mut t, 1, 1), Err(FsError::Io));
    let op = truncate(&t, 0);
    assert_eq!(t.by(1, op).0, Err(FsError::Io));
    assert_eq!(write(&mut t, 1, 2), Ok(()));
    assert_eq!(write(&mut t, 0, 0), Ok(()));
    // Again changes nothing, and of nobody not either.
    assert!(t.free(Op::ExpireLocks { session }).1.changes.is_empty());
    let session = SessionId(9999);
    assert_eq!(t.free(Op::ExpireLocks { session }).0, Ok(Reply::Done));
    assert_eq!(write(&mut t, 1, 0), Err(FsError::Io));
    // Until it knows.
    t.locks(B, 1, all, Exclusive);
    assert_eq!(t.by(1, Op::ResetLocks).0, Ok(Reply::Done));
    assert_eq!(write(&mut t, 1, 0), Ok(()));
    assert_eq!(t.held(B, 1), []);
    assert_eq!(t.keys(b"f"), 0);
    t.check();
    // A session that has ended leaves nothing.
    t.locks(B, 1, all, Exclusive);
    let session = t.sessions[1].0;
    t.free(Op::ExpireLocks { session }).0.unwrap();
    assert_eq!(t.keys(b"f"), 1);
    t.open_session(1, 2);
    assert_eq!(t.keys(b"f"), 0);
    assert_eq!(write(&mut t, 1, 1), Ok(()));
}

#[test]
fn a_waiter_is_sent_away() {
    let mut t = Tree::new();
    let all = LockRange::WHOLE;
    t.locks(A, 0, all, Exclusive);
    let b = t.waits(B, 0, all, Exclusive);
    let c = t.waits(C, 0, all, Exclusive);
    let cancel = |t: &Tree, file: usize, ticket| Op::CancelLock {
        ino: t.files[file],
        ticket,
    };
    for (file, ticket) in [(0, 1), (1, b)] {
        let op = cancel(&t, file, ticket);
        assert_eq!(t.by(0, op).0, Err(FsError::NotFound));
    }
    let op = cancel(&t, 0, b);
    let (outcome, changes) = t.by(0, op);
    assert_eq!(outcome, Ok(Reply::Done));
    let session = t.sessions[1].0;
    let ticket = b;
    let result = Err(FsError::Io);
    let gone = Change::Waited {
        session,
        ticket,
        result,
    };
    assert_eq!(changes, [gone]);
    assert_eq!(t.unlock(A, 0, all), [t.got(C, c)]);
    t.check();
}

#[test]
fn a_file_goes_with_its_locks() {
    let mut t = Tree::new();
    let all = LockRange::WHOLE;
    t.locks(A, 0, all, Exclusive);
    let ticket = t.waits(B, 0, all, Exclusive);
    let ino = t.files[0];
    let op = Op::Unlink {
        parent: InodeNo::ROOT,
        name: b"a".to_vec(),
        check: Check::Kernel,
    };
    assert_eq!(t.by(0, op).0, Ok(Reply::Done));
    // Whoever has it open may lock it.
    t.locks(A, 0, range(0, 9), Exclusive);
    let release = || Op::Release { inodes: vec![ino] };
    t.by(0, release()).0.unwrap();
    let (_, changes) = t.by(1, release());
    let session = t.sessions[1].0;
    let result = Err(FsError::Stale);
    assert!(changes.contains(&Change::Waited {
        session,
        ticket,
        result
    }));
    assert_eq!(t.keys(b"lwvn"), 0);
    let (outcome, _) = t.lock(A, 0, all, Exclusive, false);
    assert_eq!(outcome, Err(FsError::Stale));
}

/// Exactly so many, and those that are waited for count.
#[test]
fn there_is_a_limit() {
    let mut t = Tree::new();
    let most = INODE_MAX as u64;
    t.locks(A, 0, range(0, 0), Exclusive);
    for n in 1..most / 2 {
        t.locks(A, 0, range(2 * n, 2 * n), Exclusive);
        t.waits(B, 0, range(0, 0), Shared);
    }
    let refused = |t: &mut Tree, file, wait| {
        let (outcome, _) = t.lock(B, file, range(0, 0), Shared, wait);
        assert_eq!(outcome, Err(FsError::NoLocks));
    };
    refused(&mut t, 0, true);
    refused(&mut t, 0, false);
    t.check();

    // In all: what one more lock could become has room.
    let mut t = Tree::new();
    let per_file = most - 1;
    let files = (LOCKS_MAX - 1) / per_file;
    while (t.files.len() as u64) <= files {
        t.make(&t.files.len().to_string());
    }
    for n in 0..LOCKS_MAX - 1 {
        let at = 2 * (n % per_file);
        t.locks(A, (n / per_file) as usize, range(at, at), Exclusive);
    }
    refused(&mut t, files as usize, false);
    t.unlock(A, 0, range(0, 0));
    t.locks(B, 0, range(0, 0), Shared);
    refused(&mut t, files as usize, false);
}

#[test]
fn a_lock_cut_in_pieces_meets_the_limit() {
    let mut t = Tree::new();
    t.locks(A, 0, range(0, u64::MAX), Exclusive);
    let mut at = 0;
    let full = loop {
        at += 2;
        let op = Op::Unlock {
            ino: t.files[0],
            mount: A.1,
            owner: A.2,
            range: range(at, at),
        };
        match t.by(A.0, op).0 {
            Ok(_) => assert!(at < 4 * INODE_MAX as u64),
            full => break full,
        }
    };
    assert_eq!(full, Err(FsError::NoLocks));
    let (outcome, _) = t.lock(B, 0, range(2, 2), Shared, false);
    assert_eq!(outcome, Err(FsError::NoLocks));
    t.check();
    t.locks(B, 1, range(2, 2), Shared);
    assert!(t.unlock(A, 0, range(0, u64::MAX)).is_empty());
    t.locks(B, 0, range(2, 2), Shared);
    t.check();
}

/// Holders of single bytes of one file: what any sequence must come to.
#[derive(Default)]
struct Bytewise(BTreeMap<(Who, u64), LockKind>);

const SMALL: u64 = 24;

impl Bytewise {
    fn is_free(&self, who: Who, r: LockRange, kind: LockKind) -> bool {
        !self.0.iter().any(|((owner, at), held)| {
            let hit = *owner != who && r.start <= *at && *at <= r.end;
            hit && (*held == Exclusive || kind == Exclusive)
        })
    }

    fn set(&mut self, who: Who, r: LockRange, kind: Option<LockKind>) {
        for at in r.start..=r.end.min(SMALL) {
            match kind {
                Some(kind) => self.0.insert((who, at), kind),
                None => self.0.remove(&(who, at)),
            };
        }
    }
}

#[test]
fn as_a_table_of_bytes() {
    let mut t = Tree::new();
    let mut bytes = Bytewise::default();
    let mut waiting: Vec<(u64, Who, LockRange, LockKind)> = Vec::new();
    let mut seed = 42u64;
    let mut random = move |n: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        (seed >> 33) % n
    };
    let all = [A, B, C, D];
    let (mut granted, mut deadlocks) = (0, 0);
    for round in 0..4000 {
        let who = all[random(4) as usize];
        let (x, y) = (random(SMALL), random(SMALL));
        let r = range(x.min(y), x.max(y));
        let kind = if random(2) == 0 { Shared } else { Exclusive };
        let changes = match random(5) {
            0 | 1 => {
                bytes.set(who, r, None);
                t.unlock(who, 0, r)
            }
            n => {
                let wait = n == 4 && !waiting.iter().any(|w| w.1 == who);
                let (outcome, changes) = t.lock(who, 0, r, kind, wait);
                match outcome {
                    Ok(Reply::Locked { .. }) => {
                        assert!(bytes.is_free(who, r, kind), "round {round}");
                        bytes.set(who, r, Some(kind));
                    }
                    Ok(Reply::Waiting { ticket }) => {
                        assert!(wait && !bytes.is_free(who, r, kind), "round {round}");
                        waiting.push((ticket, who, r, kind));
                    }
                    Err(FsError::Deadlock) => {
                        assert!(wait && !bytes.is_free(who, r, kind));
                        deadlocks += 1;
                    }
                    Err(FsError::WouldBlock) => assert!(!bytes.is_free(who, r, kind)),
                    other => panic!("round {round}: {other:?}"),
                }
                changes
            }
        };
        for change in changes {
            let Change::Waited { ticket, result, .. } = change else {
                panic!("{change:?}");
            };
            assert_eq!(result, Ok(t.index));
            let at = waiting.iter().position(|w| w.0 == ticket).unwrap();
            let (_, who, r, kind) = waiting.remove(at);
            assert!(bytes.is_free(who, r, kind), "round {round}");
            bytes.set(who, r, Some(kind));
            granted += 1;
        }
        for (_, who, r, kind) in &waiting {
            assert!(!bytes.is_free(*who, *r, *kind), "round {round}: forgotten");
        }
        let mut held = BTreeMap::new();
        for who in all {
            for (start, end, kind) in t.held(who, 0) {
                held.extend((start..=end).map(|at| ((who, at), kind)));
            }
        }
        assert_eq!(held, bytes.0, "round {round}");
        t.check();
    }
    assert!(granted > 30 && deadlocks > 10, "{granted} {deadlocks}");
}
