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

//! What the kernel may have cached and has to drop, and how long it may keep
//! what it is given.  fused only; pure bookkeeping, never calls the kernel:
//! device.rs works off the queues.
//!
//! ```text
//!   raftd --InvalInode--> inode queue --worker--> kernel: inode's attributes, pages
//!         --InvalEntry--> entry queue --worker--> kernel: name, listing
//!                   |
//!                   +--> Changes: replies that are older get no time to live
//! ```
//!
//! A notification can block in the kernel on a request that waits for raftd,
//! so whoever reads the device or raftd only adds to a queue, and the queues
//! coalesce: they are as long as there are different things to drop.
//!
//! OpenBSD's kernel caches no names and no attributes and takes no
//! notifications.  For such a kernel fused keeps them itself: attributes with
//! the inodes of handle.rs, names here, bytes that are read ahead in ahead.rs.
//! What would have been a notification then drops them at once.

#![forbid(unsafe_code)]

use crate::{lock, wait, wait_timeout};
use common::fs::{InodeNo, ReqId};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// Who keeps what was told of names, attributes and bytes.  It is decided
/// when the kernel says in its INIT what it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// The kernel, until a notification.
    Kernel,
    /// This process, since the kernel asks again each time.
    Fused,
}

/// How long the kernel may keep what nobody invalidates.
pub const TTL: Duration = Duration::from_secs(3600);

/// The same for names, where the kernel cannot drop all of them at once.
pub const SHORT_TTL: Duration = Duration::from_secs(1);

/// Between two attempts on an inode that the kernel is still instantiating.
const UNBORN_DELAY: Duration = Duration::from_millis(1);

/// More names than this are forgotten all together.
const NAMES_MAX: usize = 65536;

/// More than so many changes are remembered as "everything".
const CHANGES_MAX: usize = 65536;

/// So many names are remembered that an inode has lost.
const LOST_MAX: usize = 8;

enum Key {
    Inode(InodeNo),
    Name(InodeNo, Vec<u8>),
}

/// The index of a change, and the first request that was sent after it.
#[derive(Clone, Copy)]
struct Change {
    index: u64,
    next: ReqId,
}

impl Change {
    /// A change never takes the place of a later one.
    fn or_later(known: Option<&Change>, index: u64, next: ReqId) -> Change {
        let index = known.map_or(index, |c| c.index.max(index));
        Change { index, next }
    }
}

/// What has changed while requests are in flight.  A reply that is older than
/// the last change of its inode or name may reach the kernel after the
/// notification, which then found nothing to drop: so it must not be cached.
#[derive(Default)]
pub struct Changes {
    /// Everything has changed with this index.
    floor: u64,
    /// The highest of all that were told.
    highest: u64,
    inodes: HashMap<InodeNo, Change>,
    names: HashMap<InodeNo, HashMap<Vec<u8>, Change>>,
    order: VecDeque<(ReqId, Key)>,
}

impl Changes {
    pub fn inode(&mut self, ino: InodeNo, index: u64, next: ReqId) {
        let change = Change::or_later(self.inodes.get(&ino), index, next);
        self.inodes.insert(ino, change);
        self.note(index, next, Key::Inode(ino));
    }

    pub fn name(&mut self, parent: InodeNo, name: &[u8], index: u64, next: ReqId) {
        let names = self.names.entry(parent).or_default();
        let change = Change::or_later(names.get(name), index, next);
        names.insert(name.to_vec(), change);
        self.note(index, next, Key::Name(parent, name.to_vec()));
    }

    pub fn all(&mut self, index: u64) {
        let highest = self.highest.max(index);
        *self = Changes {
            floor: highest,
            highest,
            ..Changes::default()
        };
    }

    fn note(&mut self, index: u64, next: ReqId, key: Key) {
        self.highest = self.highest.max(index);
        self.order.push_back((next, key));
        if self.order.len() > CHANGES_MAX {
            self.all(index);
        }
    }

    /// Every request before `oldest` is answered: forget what only they had
    /// to know.
    pub fn prune(&mut self, oldest: ReqId) {
        while self.order.front().is_some_and(|(next, _)| *next <= oldest) {
            let Some((next, key)) = self.order.pop_front() else {
                return;
            };
            match key {
                Key::Inode(ino) => {
                    if self.inodes.get(&ino).is_some_and(|c| c.next == next) {
                        self.inodes.remove(&ino);
                    }
                }
                Key::Name(parent, name) => self.prune_name(parent, &name, next),
            }
        }
    }

    fn prune_name(&mut self, parent: InodeNo, name: &[u8], next: ReqId) {
        let Some(names) = self.names.get_mut(&parent) else {
            return;
        };
        if names.get(name).is_some_and(|c| c.next == next) {
            names.remove(name);
        }
        if names.is_empty() {
            self.names.remove(&parent);
        }
    }

    /// Whether the inode has changed since `index`.
    pub fn inode_since(&self, ino: InodeNo, index: u64) -> bool {
        let at = self.inodes.get(&ino).map_or(0, |c| c.index);
        index < at.max(self.floor)
    }

    /// Whether the name has come to mean something else since `index`.
    pub fn name_since(&self, parent: InodeNo, name: &[u8], index: u64) -> bool {
        let names = self.names.get(&parent);
        let at = names.and_then(|n| n.get(name)).map_or(0, |c| c.index);
        index < at.max(self.floor)
    }
}

/// OPENs of an inode which lost a name: the kernel may have decided on them
/// by the old entry, also when it sends them after it has dropped that; until
/// it has looked the inode up again.
struct Lost {
    index: u64,
    /// The last of them, of an inode's.
    names: Vec<(InodeNo, Vec<u8>)>,
    /// Notifications under way.
    untold: u32,
    /// The first request after the last of them.
    next: ReqId,
    /// Answers that wait for them.
    held: Vec<ReqId>,
}

/// By inode; None stands for all.
#[derive(Default)]
pub struct LostNames(HashMap<Option<InodeNo>, Lost>);

impl LostNames {
    pub fn lost(&mut self, ino: InodeNo, (parent, name): (InodeNo, &[u8]), index: u64) {
        let names = &mut self.add(Some(ino), index).names;
        let name = (parent, name.to_vec());
        names.retain(|known| *known != name);
        if names.len() >= LOST_MAX {
            names.remove(0);
        }
        names.push(name);
    }

    pub fn lost_all(&mut self, index: u64) {
        self.add(None, index);
    }

    fn add(&mut self, ino: Option<InodeNo>, index: u64) -> &mut Lost {
        let lost = self.0.entry(ino).or_insert(Lost {
            index,
            names: Vec::new(),
            untold: 0,
            next: ReqId(0),
            held: Vec::new(),
        });
        lost.untold += 1;
        lost.index = lost.index.max(index);
        lost
    }

    /// Whether any name may be one that its inode has lost.
    pub fn has_lost_all(&self) -> bool {
        self.0.contains_key(&None)
    }

    /// The names that the inode has lost.
    pub fn names_of(&self, ino: InodeNo) -> Vec<(InodeNo, Vec<u8>)> {
        let lost = self.0.get(&Some(ino));
        lost.map_or(Vec::new(), |lost| lost.names.clone())
    }

    /// The kernel is told, as of `index`, that some name means the inode.
    pub fn looked_up(&mut self, ino: InodeNo, index: u64) {
        let lost = self.0.get(&Some(ino));
        if lost.is_some_and(|l| l.untold == 0 && index >= l.index) {
            self.0.remove(&Some(ino));
        }
    }

    /// The kernel knows the inode no more, by whatever name.
    pub fn forgotten(&mut self, ino: InodeNo) {
        if self.0.get(&Some(ino)).is_some_and(|l| l.held.is_empty()) {
            self.0.remove(&Some(ino));
        }
    }

    /// The kernel has dropped one such name; returns the answers to give.
    pub fn told(&mut self, ino: Option<InodeNo>, next: ReqId) -> Vec<ReqId> {
        let Some(lost) = self.0.get_mut(&ino) else {
            return Vec::new();
        };
        lost.untold = lost.untold.saturating_sub(1);
        lost.next = next;
        match lost.untold {
            0 => std::mem::take(&mut lost.held),
            _ => Vec::new(),
        }
    }

    /// Every request before `oldest` is answered.
    pub fn prune(&mut self, oldest: ReqId) {
        self.0
            .retain(|ino, lost| ino.is_some() || lost.untold > 0 || lost.next > oldest);
    }

    /// Whether the OPEN, answered as of `index`, may mean a name which the
    /// inode no longer has.
    pub fn is_stale(&self, ino: InodeNo, open: ReqId, index: u64) -> bool {
        [Some(ino), None].iter().any(|key| {
            let lost = self.0.get(key);
            let all = key.is_none();
            let sent = |l: &Lost| !all || l.untold > 0 || open < l.next;
            lost.is_some_and(|l| index >= l.index && sent(l))
        })
    }

    /// Keeps the answer until the kernel has dropped the names; false if it
    /// already has.
    pub fn hold(&mut self, ino: InodeNo, id: ReqId) -> bool {
        for key in [Some(ino), None] {
            if let Some(lost) = self.0.get_mut(&key).filter(|lost| lost.untold > 0) {
                lost.held.push(id);
                return true;
            }
        }
        false
    }
}

/// What names meant when they were last looked up or changed by this mount,
/// for a kernel that does not remember it.  `Some(None)` is a name that was
/// free then: good enough to know that a rename replaces nothing, since a
/// change by others takes it out of here before.
#[derive(Default)]
pub struct Names {
    table: HashMap<InodeNo, HashMap<Vec<u8>, Option<InodeNo>>>,
    count: usize,
}

impl Names {
    pub fn put(&mut self, parent: InodeNo, name: &[u8], ino: Option<InodeNo>) {
        if self.count >= NAMES_MAX {
            self.clear();
        }
        let names = self.table.entry(parent).or_default();
        if names.insert(name.to_vec(), ino).is_none() {
            self.count += 1;
        }
    }

    /// The inode, if there was one.
    pub fn get(&self, parent: InodeNo, name: &[u8]) -> Option<InodeNo> {
        *self.table.get(&parent)?.get(name)?
    }

    /// Forgets the name; None if nothing is known of it.
    pub fn take(&mut self, parent: InodeNo, name: &[u8]) -> Option<Option<InodeNo>> {
        let names = self.table.get_mut(&parent)?;
        let ino = names.remove(name)?;
        self.count -= 1;
        if names.is_empty() {
            self.table.remove(&parent);
        }
        Some(ino)
    }

    pub fn clear(&mut self) {
        *self = Names::default();
    }
}

/// A queue in which each key stands once.
struct Coalescing<K, V> {
    map: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Hash + Eq + Clone, V> Coalescing<K, V> {
    fn new() -> Self {
        Coalescing {
            map: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    fn push(&mut self, key: K, value: V, merge: impl FnOnce(&mut V, V)) {
        match self.map.get_mut(&key) {
            Some(old) => merge(old, value),
            None => {
                self.order.push_back(key.clone());
                self.map.insert(key, value);
            }
        }
    }

    fn pop(&mut self) -> Option<(K, V)> {
        let key = self.order.pop_front()?;
        let value = self.map.remove(&key)?;
        Some((key, value))
    }

    fn contains(&self, key: &K) -> bool {
        self.map.contains_key(key)
    }

    fn len(&self) -> usize {
        self.order.len()
    }
}

/// From where on the pages are stale; None: only attributes are.
type Data = Option<u64>;

struct InodeQueue {
    queue: Coalescing<InodeNo, Data>,
    /// The one that the worker is telling the kernel of.
    active: Option<InodeNo>,
    /// How many at the end of the queue the kernel did not know yet.
    unborn: usize,
    /// Replies that wait until their inode is out of the queue.
    held: HashMap<InodeNo, Vec<ReqId>>,
}

impl InodeQueue {
    fn push(&mut self, ino: InodeNo, data: Data) {
        self.queue.push(ino, data, |old, new| {
            *old = match (*old, new) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }
        });
    }

    fn is_queued(&self, ino: InodeNo) -> bool {
        self.active == Some(ino) || self.queue.contains(&ino)
    }
}

struct EntryQueue {
    /// With the inodes that lost that name.
    queue: Coalescing<(InodeNo, Vec<u8>), Vec<InodeNo>>,
    /// All names are to be dropped; for so many times that all was lost.
    epoch: Option<usize>,
}

/// What the worker for names does next.
#[derive(Debug, PartialEq, Eq)]
pub enum EntryWork {
    /// All names at once; all was lost so many times.
    Epoch(usize),
    Entry {
        parent: InodeNo,
        name: Vec<u8>,
        lost: Vec<InodeNo>,
    },
}

/// No name is this; to ask for it only waits for whoever is listing the
/// directory.
pub const NO_NAME: &[u8] = b".";

pub struct Invalidations {
    inodes: Mutex<InodeQueue>,
    inode_ready: Condvar,
    entries: Mutex<EntryQueue>,
    entry_ready: Condvar,
}

impl Invalidations {
    pub fn new() -> Self {
        Invalidations {
            inodes: Mutex::new(InodeQueue {
                queue: Coalescing::new(),
                active: None,
                unborn: 0,
                held: HashMap::new(),
            }),
            inode_ready: Condvar::new(),
            entries: Mutex::new(EntryQueue {
                queue: Coalescing::new(),
                epoch: None,
            }),
            entry_ready: Condvar::new(),
        }
    }

    pub fn inode(&self, ino: InodeNo, data: Data) {
        lock(&self.inodes).push(ino, data);
        self.inode_ready.notify_one();
    }

    pub fn entry(&self, parent: InodeNo, name: &[u8], lost: Option<InodeNo>) {
        let mut entries = lock(&self.entries);
        let key = (parent, name.to_vec());
        let lost = lost.into_iter().collect();
        entries.queue.push(key, lost, |old, new| old.extend(new));
        self.entry_ready.notify_one();
    }

    /// The kernel shall look up all names again.
    pub fn names(&self) {
        lock(&self.entries).epoch.get_or_insert(0);
        self.entry_ready.notify_one();
    }

    /// All names, and everything of these inodes; `listed` are the
    /// directories among them whose listing the kernel may keep.
    pub fn everything(&self, inodes: &[InodeNo], listed: &[InodeNo]) {
        *lock(&self.entries).epoch.get_or_insert(0) += 1;
        listed
            .iter()
            .for_each(|dir| self.entry(*dir, NO_NAME, None));
        self.entry_ready.notify_one();
        inodes.iter().for_each(|ino| self.inode(*ino, Some(0)));
    }

    pub fn is_queued(&self, ino: InodeNo) -> bool {
        lock(&self.inodes).is_queued(ino)
    }

    /// Keeps the reply `id` until the inode is out of the queue; false if it
    /// already is.
    pub fn hold(&self, ino: InodeNo, id: ReqId) -> bool {
        let mut inodes = lock(&self.inodes);
        let queued = inodes.is_queued(ino);
        if queued {
            inodes.held.entry(ino).or_default().push(id);
        }
        queued
    }

    /// The next inode to tell the kernel of; waits for one.
    pub fn next_inode(&self) -> (InodeNo, Data) {
        let mut inodes = lock(&self.inodes);
        loop {
            if inodes.unborn > 0 && inodes.unborn >= inodes.queue.len() {
                inodes = wait_timeout(&self.inode_ready, inodes, UNBORN_DELAY);
                inodes.unborn = 0;
            }
            if let Some((ino, data)) = inodes.queue.pop() {
                inodes.active = Some(ino);
                return (ino, data);
            }
            inodes = wait(&self.inode_ready, inodes);
        }
    }

    /// The kernel was told of the inode.  With `unborn` it did not know it,
    /// though it was given to it: the notification would be lost, so it is
    /// tried again.  Returns the replies that waited.
    pub fn inode_done(&self, ino: InodeNo, data: Data, unborn: bool) -> Vec<ReqId> {
        let mut inodes = lock(&self.inodes);
        inodes.active = None;
        if unborn {
            inodes.push(ino, data);
            inodes.unborn += 1;
        } else {
            inodes.unborn = 0;
        }
        match inodes.is_queued(ino) {
            true => Vec::new(),
            false => inodes.held.remove(&ino).unwrap_or_default(),
        }
    }

    /// The next name to tell the kernel of; waits for one.
    pub fn next_entry(&self) -> EntryWork {
        let mut entries = lock(&self.entries);
        loop {
            if let Some(times) = entries.epoch.take() {
                return EntryWork::Epoch(times);
            }
            if let Some(((parent, name), lost)) = entries.queue.pop() {
                return EntryWork::Entry { parent, name, lost };
            }
            entries = wait(&self.entry_ready, entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: InodeNo = InodeNo(2);
    const B: InodeNo = InodeNo(3);

    #[test]
    fn a_key_stands_once_in_its_place() {
        let mut queue = Coalescing::new();
        let sum = |old: &mut i32, new| *old += new;
        queue.push("a", 1, sum);
        queue.push("b", 2, sum);
        queue.push("a", 10, sum);
        assert!(queue.contains(&"a"));
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.pop(), Some(("a", 11)));
        queue.push("a", 5, sum);
        assert_eq!(queue.pop(), Some(("b", 2)));
        assert_eq!(queue.pop(), Some(("a", 5)));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn replies_older_than_a_change() {
        let mut changes = Changes::default();
        changes.inode(A, 10, ReqId(5));
        changes.name(A, b"x", 11, ReqId(6));
        assert!(changes.inode_since(A, 9));
        assert!(!changes.inode_since(A, 10));
        assert!(!changes.inode_since(B, 0));
        assert!(changes.name_since(A, b"x", 10));
        assert!(!changes.name_since(A, b"x", 11));
        assert!(!changes.name_since(A, b"y", 0));
        assert!(!changes.name_since(B, b"x", 0));

        // Requests from before the second change, and from before both of
        // A's, are in flight.
        changes.inode(A, 20, ReqId(9));
        changes.prune(ReqId(5));
        assert!(changes.inode_since(A, 19) && changes.name_since(A, b"x", 10));
        changes.prune(ReqId(8));
        assert!(changes.inode_since(A, 19) && !changes.name_since(A, b"x", 10));
        changes.prune(ReqId(9));
        assert!(!changes.inode_since(A, 19));
        assert!(changes.inodes.is_empty() && changes.names.is_empty());

        changes.all(30);
        assert!(changes.inode_since(B, 29) && changes.name_since(B, b"z", 29));
        assert!(!changes.inode_since(B, 30));
    }

    #[test]
    fn a_later_change_stays() {
        let mut changes = Changes::default();
        changes.inode(A, 50, ReqId(1));
        changes.name(A, b"x", 60, ReqId(1));
        changes.inode(A, 0, ReqId(2));
        changes.name(A, b"x", 7, ReqId(2));
        assert!(changes.inode_since(A, 49) && changes.name_since(A, b"x", 59));
        changes.all(0);
        assert!(changes.inode_since(A, 59) && changes.inode_since(B, 59));
        assert!(!changes.inode_since(A, 60));
    }

    #[test]
    fn too_many_changes_are_all() {
        let mut changes = Changes::default();
        for i in 0..=CHANGES_MAX as u64 {
            changes.inode(InodeNo(i), i, ReqId(1));
        }
        assert!(changes.inodes.is_empty());
        assert!(changes.inode_since(InodeNo(1 << 40), CHANGES_MAX as u64 - 1));
    }

    #[test]
    fn names_and_what_they_meant() {
        let mut names = Names::default();
        names.put(A, b"x", Some(B));
        names.put(A, b"free", None);
        assert_eq!(names.get(A, b"x"), Some(B));
        assert_eq!(names.get(A, b"free"), None);
        assert_eq!(names.take(A, b"free"), Some(None));
        assert_eq!(names.take(A, b"free"), None);
        assert_eq!(names.take(B, b"x"), None);
        names.put(A, b"x", Some(A));
        assert_eq!((names.count, names.take(A, b"x")), (1, Some(Some(A))));
        assert!(names.count == 0 && names.table.is_empty());
        for i in 0..=NAMES_MAX as u64 {
            names.put(InodeNo(i), b"x", None);
        }
        assert_eq!((names.count, names.table.len()), (1, 1));
    }

    #[test]
    fn inodes_are_told_again_until_born() {
        let queue = Invalidations::new();
        queue.inode(A, None);
        queue.inode(A, Some(500));
        queue.inode(A, Some(100));
        assert!(queue.hold(A, ReqId(1)));
        assert!(!queue.hold(B, ReqId(2)));
        assert_eq!(queue.next_inode(), (A, Some(100)));
        assert!(queue.is_queued(A), "until it has returned");
        assert!(queue.inode_done(A, Some(100), true).is_empty());
        assert_eq!(queue.next_inode(), (A, Some(100)));
        // One more while the kernel is being told.
        queue.inode(A, None);
        assert!(queue.inode_done(A, Some(100), false).is_empty());
        assert_eq!(queue.next_inode(), (A, None));
        assert_eq!(queue.inode_done(A, None, false), [ReqId(1)]);
        assert!(!queue.is_queued(A));
    }

    #[test]
    fn names_after_the_epoch() {
        let queue = Invalidations::new();
        queue.entry(A, b"x", Some(B));
        queue.entry(A, b"x", None);
        queue.entry(A, b"x", Some(A));
        queue.everything(&[B], &[A]);
        queue.names();
        queue.everything(&[], &[]);
        let entry = |name: &[u8], lost| EntryWork::Entry {
            parent: A,
            name: name.to_vec(),
            lost,
        };
        assert_eq!(queue.next_entry(), EntryWork::Epoch(2));
        assert_eq!(queue.next_entry(), entry(b"x", vec![B, A]));
        assert_eq!(queue.next_entry(), entry(NO_NAME, vec![]));
        assert_eq!(queue.next_inode(), (B, Some(0)));
    }

    #[test]
    fn opens_by_a_lost_name() {
        let mut lost = LostNames::default();
        assert!(!lost.is_stale(A, ReqId(1), 100));
        lost.lost(A, (B, b"x"), 10);
        assert_eq!(lost.names_of(A), [(B, b"x".to_vec())]);
        assert!(!lost.is_stale(A, ReqId(5), 9), "before it lost the name");
        assert!(lost.is_stale(A, ReqId(5), 10));
        assert!(!lost.is_stale(B, ReqId(5), 10));
        assert!(lost.hold(A, ReqId(5)));
        assert_eq!(lost.told(Some(A), ReqId(7)), [ReqId(5)]);
        assert!(lost.is_stale(A, ReqId(6), 10), "sent before");
        assert!(lost.is_stale(A, ReqId(7), 10), "decided before");
        assert!(!lost.hold(A, ReqId(6)));
        lost.prune(ReqId(8));
        lost.looked_up(A, 9);
        assert!(lost.is_stale(A, ReqId(8), 10), "by what was so before");
        lost.looked_up(A, 10);
        assert!(!lost.is_stale(A, ReqId(8), 10));
        lost.lost(A, (B, b"y"), 12);
        assert_eq!(lost.names_of(A), [(B, b"y".to_vec())]);
        lost.looked_up(A, 12);
        assert!(lost.is_stale(A, ReqId(8), 12), "still to be told");
        lost.forgotten(A);
        assert!(lost.0.is_empty());
        assert!(lost.names_of(A).is_empty());
        assert!(!lost.has_lost_all());
        lost.lost_all(20);
        assert!(lost.has_lost_all());
        assert!(lost.is_stale(B, ReqId(8), 20));
    }
}
