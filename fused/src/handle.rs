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

//! What the kernel knows and holds of this mount: lookup counts, open files,
//! changes under way, errors not yet reported.  fused only; does no I/O but
//! for closing descriptors.

#![forbid(unsafe_code)]

use crate::ahead::{Ahead, Plan, Round, AHEADS_MAX};
use crate::backing::Backing;
use common::fs::{atime_due, Attr, Fh, FsError, InodeNo, ReqId, Time, S_ISGID, S_ISUID};
use nix::errno::Errno;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The user id that nobody has, chown(2).
const NOBODY: u32 = u32::MAX;

/// A change that raftd has not yet answered for good: from when it was read
/// off the device until it is applied or has failed.
struct Mutation {
    id: ReqId,
    range: Range<u64>,
}

/// Somebody who must see, or must not overtake, changes up to `upto`.
struct Waiter<W> {
    upto: ReqId,
    /// None: whatever they touch.
    range: Option<Range<u64>>,
    wake: W,
}

/// The changes of one inode that are under way, in the order they were read.
pub struct Pending<W> {
    mutations: Vec<Mutation>,
    waiters: Vec<Waiter<W>>,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl<W> Default for Pending<W> {
    fn default() -> Self {
        Pending {
            mutations: Vec::new(),
            waiters: Vec::new(),
        }
    }
}

impl<W> Pending<W> {
    /// `range` is what a read must not see the old bytes of; empty if no
    /// bytes change.
    pub fn begin(&mut self, id: ReqId, range: Range<u64>) {
        self.mutations.push(Mutation { id, range });
    }

    /// Returns whoever waited for this one and for no other.
    pub fn end(&mut self, id: ReqId) -> Vec<W> {
        self.mutations.retain(|m| m.id != id);
        let waiters = std::mem::take(&mut self.waiters);
        let mut ready = Vec::new();
        for waiter in waiters {
            match self.blocks(waiter.upto, &waiter.range) {
                true => self.waiters.push(waiter),
                false => ready.push(waiter.wake),
            }
        }
        ready
    }

    fn blocks(&self, upto: ReqId, range: &Option<Range<u64>>) -> bool {
        self.mutations.iter().any(|m| {
            let touched = range.as_ref().is_none_or(|range| overlap(&m.range, range));
            m.id <= upto && touched
        })
    }

    /// Waits for what is under way now; gives `wake` back if that is nothing.
    /// What begins later is not waited for, or a stream of writes would
    /// starve the reader.
    pub fn wait(&mut self, range: Option<Range<u64>>, wake: W) -> Result<(), W> {
        let Some(upto) = self.mutations.last().map(|m| m.id) else {
            return Err(wake);
        };
        if !self.blocks(upto, &range) {
            return Err(wake);
        }
        self.waiters.push(Waiter { upto, range, wake });
        Ok(())
    }

    pub fn is_any(&self) -> bool {
        !self.mutations.is_empty()
    }
}

/// What an inode has while it is open or changing.
pub struct Busy<W> {
    pub opens: u32,
    /// Of these opens, those whose writes and reads go through the pages.
    pub buffered: u32,
    /// The open that made it.
    pub made: Option<Fh>,
    pub backing: Option<Arc<Backing>>,
    /// Its place in the clock, if it has a backing file.
    place: u64,
    /// Read since the clock hand last came by.
    used: bool,
    pub pending: Pending<W>,
    /// Pending writes that went over the control lane.
    pub quick: u32,
    ahead: Ahead,
}

impl<W> Default for Busy<W> {
    fn default() -> Self {
        Busy {
            opens: 0,
            buffered: 0,
            made: None,
            backing: None,
            place: 0,
            used: false,
            pending: Pending::default(),
            quick: 0,
            ahead: Ahead::default(),
        }
    }
}

/// An inode that the kernel knows, or that is open or changing.
pub struct Inode<W> {
    nlookup: u64,
    /// Applied index of the newest attributes seen.
    index: u64,
    /// The version of the contents that the kernel's pages are of.
    pub version: Option<u64>,
    /// The kernel believes that it has the set-user-id or set-group-id bit.
    pub setid: bool,
    /// The size and the owner that the kernel knows, if it knows the inode.
    size: u64,
    owner: Option<u32>,
    /// Another node has given it away.  By whom the kernel judges is not known
    /// from then on: it may not take the attributes that it is answered.
    given_away: bool,
    /// A directory of whose listing the kernel may keep something.
    pub listed: bool,
    /// A directory that has been removed.
    orphan: bool,
    /// Whether it has extended attributes, if that is known: by the newest
    /// attributes, and no change of others since.
    pub xattrs: Option<bool>,
    /// From this second on a read moves the time of access.
    access_due: i64,
    access_ctime: Time,
    /// The ctime as it was when raftd was told of a read.
    access_told: Option<Time>,
    /// What a kernel that keeps no attributes is told.
    kept: Option<Box<Attr>>,
    busy: Option<Box<Busy<W>>>,
}

impl<W> Default for Inode<W> {
    fn default() -> Self {
        Inode {
            nlookup: 0,
            index: 0,
            version: None,
            setid: false,
            size: 0,
            owner: None,
            given_away: false,
            listed: false,
            orphan: false,
            xattrs: None,
            access_due: i64::MIN,
            access_ctime: Time::default(),
            access_told: None,
            kept: None,
            busy: None,
        }
    }
}

impl<W> Inode<W> {
    /// Takes note of attributes for the kernel; false if they are older than
    /// others before.
    pub fn show(&mut self, attr: &Attr, index: u64) -> bool {
        self.setid = attr.is_file() && attr.mode & (S_ISUID | S_ISGID) != 0;
        self.see_access(attr);
        self.size = attr.size;
        self.owner = Some(attr.uid);
        let newest = self.is_newest(index);
        self.index = self.index.max(index);
        newest
    }

    /// By which the kernel has judged what it asks now.
    pub fn owner(&self) -> Option<u32> {
        match self.given_away {
            true => Some(NOBODY),
            false => self.owner,
        }
    }

    pub fn give_away(&mut self) {
        self.given_away = true;
    }

    /// The kernel is told what it has asked for before that is so.
    pub fn foresee(&mut self, attr: &Attr) {
        self.owner = Some(attr.uid);
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// The kernel is told that bytes up to there are written.
    pub fn grow(&mut self, end: u64) {
        self.size = self.size.max(end);
    }

    /// Whether attributes as of that index are older than others before.
    pub fn is_newest(&self, index: u64) -> bool {
        index >= self.index
    }

    /// Takes note of attributes that the kernel is not given; true if it now
    /// believes in a set-user-id or set-group-id bit that is gone.
    pub fn note(&mut self, attr: &Attr, index: u64) -> bool {
        self.see_access(attr);
        self.index = self.index.max(index);
        self.setid && attr.mode & (S_ISUID | S_ISGID) == 0
    }

    fn see_access(&mut self, attr: &Attr) {
        self.access_ctime = attr.ctime;
        self.access_due = match atime_due(attr) {
            // raftd takes its time.
            i64::MIN if self.access_told == Some(attr.ctime) => i64::MAX,
            due => due,
        };
    }

    /// Whether a read would move the time of access, as far as is known.
    pub fn is_access_due(&self) -> bool {
        // What is known to be told of does not cost a look at the clock.
        match self.access_due {
            i64::MIN => true,
            i64::MAX => false,
            due => {
                SystemTime::now() >= UNIX_EPOCH + Duration::from_secs(due.try_into().unwrap_or(0))
            }
        }
    }

    /// The same for one that is told of, and so is due no more.
    pub fn take_access(&mut self) -> bool {
        let due = self.is_access_due();
        if due {
            self.access_due = i64::MAX;
            self.access_told = Some(self.access_ctime);
        }
        due
    }

    /// What is known of the time of access is old.
    pub fn forget_access(&mut self) {
        self.access_due = i64::MIN;
    }

    /// To be told until `clear`.
    pub fn keep(&mut self, attr: &Attr) {
        self.kept = Some(Box::new(attr.clone()));
    }

    /// What is kept, unless a change under way makes it old.
    pub fn kept(&self) -> Option<&Attr> {
        let changing = self.busy.as_ref().is_some_and(|busy| busy.pending.is_any());
        self.kept.as_deref().filter(|_| !changing)
    }

    /// Forgets what is kept: attributes and, with `bytes`, what was read ahead.
    pub fn clear(&mut self, bytes: bool) {
        self.kept = None;
        if let Some(busy) = self.busy.as_deref_mut().filter(|_| bytes) {
            busy.ahead.clear();
        }
    }

    pub fn busy(&mut self) -> &mut Busy<W> {
        self.busy.get_or_insert_default()
    }

    pub fn if_busy(&mut self) -> Option<&mut Busy<W>> {
        self.busy.as_deref_mut()
    }
}

pub struct Inodes<W> {
    table: HashMap<InodeNo, Inode<W>>,
    /// Inodes with a backing file, for the clock that finds one to close.
    clock: BTreeMap<u64, InodeNo>,
    last_place: u64,
    /// Most backing files to hold.
    cap: usize,
    /// Inodes of which bytes were read ahead, the last one last.
    aheads: VecDeque<InodeNo>,
}

impl<W> Inodes<W> {
    pub fn new(cap: usize) -> Self {
        let root = Inode {
            nlookup: 1,
            ..Inode::default()
        };
        Inodes {
            table: HashMap::from([(InodeNo::ROOT, root)]),
            clock: BTreeMap::new(),
            last_place: 0,
            cap,
            aheads: VecDeque::new(),
        }
    }

    pub fn get(&mut self, ino: InodeNo) -> Option<&mut Inode<W>> {
        self.table.get_mut(&ino)
    }

    pub fn get_or_new(&mut self, ino: InodeNo) -> &mut Inode<W> {
        self.table.entry(ino).or_default()
    }

    pub fn if_busy(&mut self, ino: InodeNo) -> Option<&mut Busy<W>> {
        self.table.get_mut(&ino)?.if_busy()
    }

    /// Counts a lookup; to be called before the kernel is answered.
    pub fn looked_up(&mut self, ino: InodeNo) -> &mut Inode<W> {
        let inode = self.get_or_new(ino);
        inode.nlookup += 1;
        inode
    }

    /// True if it is one that was to be kept until then.
    pub fn forget(&mut self, ino: InodeNo, nlookup: u64) -> bool {
        let Some(inode) = self.table.get_mut(&ino) else {
            return false;
        };
        inode.nlookup = inode.nlookup.saturating_sub(nlookup);
        inode.given_away &= inode.nlookup > 0;
        let over = inode.nlookup == 0 && std::mem::take(&mut inode.orphan);
        self.tidy(ino);
        over
    }

    /// A directory without a name, to be kept until the kernel forgets it; false
    /// if it has.
    pub fn orphan(&mut self, ino: InodeNo) -> bool {
        let known = self.is_known(ino);
        if known {
            self.get_or_new(ino).orphan = true;
        }
        known
    }

    pub fn is_orphan(&self, ino: InodeNo) -> bool {
        self.table.get(&ino).is_some_and(|inode| inode.orphan)
    }

    /// Whether the kernel has been given the inode; it is born with the root.
    pub fn is_known(&self, ino: InodeNo) -> bool {
        ino == InodeNo::ROOT || self.table.get(&ino).is_some_and(|i| i.nlookup > 0)
    }

    /// All that the kernel has been given, and of them those listed.
    pub fn known(&mut self) -> (Vec<InodeNo>, Vec<InodeNo>) {
        let mut known = vec![InodeNo::ROOT];
        let mut listed = Vec::new();
        for (ino, inode) in &mut self.table {
            inode.version = None;
            inode.xattrs = None;
            if inode.nlookup > 0 && *ino != InodeNo::ROOT {
                known.push(*ino);
            }
            if inode.listed {
                listed.push(*ino);
            }
        }
        (known, listed)
    }

    /// Keeps attributes of what the kernel knows.
    pub fn keep(&mut self, attr: &Attr) {
        let known = self.is_known(attr.ino);
        if known {
            self.get_or_new(attr.ino).keep(attr);
        }
    }

    pub fn clear(&mut self, ino: InodeNo, bytes: bool) {
        if let Some(inode) = self.table.get_mut(&ino) {
            inode.clear(bytes);
        }
    }

    pub fn clear_all(&mut self, bytes: bool) {
        self.table.values_mut().for_each(|inode| inode.clear(bytes));
    }

    /// How to answer a READ for a kernel that does not read ahead.
    pub fn plan_read(&mut self, ino: InodeNo, offset: u64, size: u32) -> Plan {
        let busy = self.if_busy(ino);
        // Half of a change must not be kept.
        match busy.filter(|busy| busy.opens > 0 && !busy.pending.is_any()) {
            Some(busy) => busy.ahead.plan(offset, size),
            None => Plan::Plain,
        }
    }

    /// What was read ahead; for the latest of many the oldest are dropped.
    pub fn filled(&mut self, ino: InodeNo, round: Round, offset: u64, bytes: &[u8]) {
        let busy = self.if_busy(ino);
        if !busy.is_some_and(|busy| busy.ahead.filled(round, offset, bytes)) {
            return;
        }
        self.aheads.retain(|other| *other != ino);
        self.aheads.push_back(ino);
        while self.aheads.len() > AHEADS_MAX {
            let oldest = self.aheads.pop_front();
            if let Some(busy) = oldest.and_then(|ino| self.if_busy(ino)) {
                busy.ahead.clear();
            }
        }
    }

    /// Drops what nothing needs any more.
    pub fn tidy(&mut self, ino: InodeNo) {
        let Some(inode) = self.table.get_mut(&ino) else {
            return;
        };
        if let Some(busy) = inode.busy.as_deref_mut() {
            if busy.opens == 0 {
                busy.ahead.clear();
                if busy.backing.take().is_some() {
                    self.clock.remove(&busy.place);
                }
            }
            if busy.opens == 0 && !busy.pending.is_any() {
                inode.busy = None;
            }
        }
        // The root's attributes are asked for with each path.
        let kept = ino == InodeNo::ROOT && inode.kept.is_some();
        if inode.nlookup == 0 && inode.busy.is_none() && !kept {
            self.table.remove(&ino);
        }
    }

    /// Keeps the backing file of an open inode, and for that closes another
    /// which was not read for long if there are too many.
    pub fn set_backing(&mut self, ino: InodeNo, backing: Arc<Backing>) {
        let Some(busy) = self.if_busy(ino).filter(|busy| busy.opens > 0) else {
            return;
        };
        busy.used = true;
        if busy.backing.replace(backing).is_none() {
            self.seat(ino);
            self.make_room();
        }
    }

    /// Last in the clock.
    fn seat(&mut self, ino: InodeNo) {
        self.last_place += 1;
        let place = self.last_place;
        if let Some(busy) = self.if_busy(ino) {
            busy.place = place;
            self.clock.insert(place, ino);
        }
    }

    fn make_room(&mut self) {
        while self.clock.len() > self.cap {
            let Some((_, ino)) = self.clock.pop_first() else {
                return;
            };
            let Some(busy) = self.if_busy(ino) else {
                continue;
            };
            if std::mem::take(&mut busy.used) {
                self.seat(ino);
            } else {
                busy.backing = None;
            }
        }
    }

    /// The backing file to read from.
    pub fn backing(&mut self, ino: InodeNo) -> Option<Arc<Backing>> {
        let busy = self.if_busy(ino)?;
        busy.used = true;
        busy.backing.clone()
    }

    pub fn take_backing(&mut self, ino: InodeNo) -> Option<Arc<Backing>> {
        let busy = self.if_busy(ino)?;
        let (backing, place) = (busy.backing.take()?, busy.place);
        self.clock.remove(&place);
        Some(backing)
    }
}

/// An open file.
pub struct Handle {
    pub ino: InodeNo,
    pub write: bool,
    /// Writes are answered when they are applied.
    pub sync: bool,
    /// Reads and writes do not go through the pages.
    pub direct: bool,
    /// Its close waits for changes that it may have made.
    pub settles: bool,
    /// The thread that made the file by it, until it closes it.
    pub maker: Option<u32>,
    /// A write that was answered and then failed; reported once.
    error: Option<FsError>,
    /// Where its last WRITE ended, if that did not fail.
    wrote_to: Option<u64>,
    /// The last WRITE was without pages and failed.
    unpaged: bool,
    /// What the kernel may do because a WRITE has failed.
    cut: Option<Cut>,
    /// A lock that was taken through it is lost.
    lost: bool,
}

/// A truncation that would take back a WRITE that has failed.
pub struct Cut {
    /// By the thread that has written.
    pub pid: u32,
    pub size: u64,
    /// The size that the kernel was told last before.
    pub told: u64,
    pub error: Errno,
}

impl Handle {
    pub fn new(ino: InodeNo, write: bool, sync: bool, direct: bool) -> Self {
        Handle {
            ino,
            write,
            sync,
            direct,
            settles: write,
            maker: None,
            error: None,
            wrote_to: None,
            unpaged: false,
            cut: None,
            lost: false,
        }
    }
}

#[derive(Default)]
pub struct Handles {
    table: HashMap<Fh, Handle>,
    last: u64,
}

impl Handles {
    pub fn open(&mut self, handle: Handle) -> Fh {
        self.last += 1;
        let fh = Fh(self.last);
        self.table.insert(fh, handle);
        fh
    }

    pub fn get(&self, fh: Fh) -> Option<&Handle> {
        self.table.get(&fh)
    }

    pub fn close(&mut self, fh: Fh) -> Option<Handle> {
        self.table.remove(&fh)
    }

    /// A write that the program was told to have succeeded has failed.  The
    /// handle must say so at its next write, fsync or close; where it is not
    /// known, all that could have written must.
    pub fn fail(&mut self, ino: InodeNo, fh: Option<Fh>, error: FsError) {
        let own = fh.and_then(|fh| self.table.get_mut(&fh));
        match own.filter(|handle| handle.ino == ino) {
            Some(handle) => {
                handle.error.get_or_insert(error);
            }
            None => self
                .table
                .values_mut()
                .filter(|handle| handle.ino == ino && handle.write)
                .for_each(|handle| {
                    handle.error.get_or_insert(error);
                }),
        }
    }

    /// Whether anybody could have written it.
    pub fn is_written(&self, ino: InodeNo) -> bool {
        let mut handles = self.table.values();
        handles.any(|handle| handle.ino == ino && handle.write)
    }

    /// A handle that has lost a lock has an error for good.
    pub fn error(&self, fh: Fh) -> Option<FsError> {
        let handle = self.table.get(&fh)?;
        match handle.lost {
            true => Some(FsError::Io),
            false => handle.error,
        }
    }

    /// The same for who is sure to hear of it.
    pub fn take_error(&mut self, fh: Fh) -> Option<FsError> {
        let error = self.error(fh);
        self.table.get_mut(&fh)?.error = None;
        error
    }

    /// The same for a WRITE.  One that goes on where the last one ended may be a
    /// part of the same write(2): Linux cuts that at 1 MiB, at a page of which
    /// only the end is written, and wherever copying stops; and of a part that
    /// fails behind others it tells the program nothing but their bytes.  So the
    /// error is kept for the next who asks, and may be told twice; and once more
    /// if the part was to go without pages: Linux then tries it with them.
    pub fn write_error(
        &mut self,
        fh: Fh,
        offset: u64,
        len: usize,
        unpaged: bool,
    ) -> Option<FsError> {
        let goes_on = self.table.get(&fh)?.wrote_to == Some(offset);
        let error = match goes_on {
            true => self.error(fh),
            false => self.take_error(fh),
        };
        let end = offset.saturating_add(len as u64);
        let handle = self.table.get_mut(&fh)?;
        let again = unpaged && goes_on && !handle.unpaged;
        handle.unpaged = error.is_some() && again;
        handle.wrote_to = match error {
            None => Some(end),
            Some(_) => again.then_some(offset),
        };
        if error.is_none() {
            handle.cut = None;
        }
        error
    }

    /// A WRITE has failed that would have made the file, as the kernel knows it,
    /// longer.  To take back a write without pages, or one that nobody waits for,
    /// Linux then cuts the file to the size that it knows; but it may be an old
    /// one, and what is behind it others have written.
    pub fn write_refused(&mut self, fh: Fh, cut: Cut, unpaged: bool) {
        if let Some(handle) = self.table.get_mut(&fh).filter(|h| h.direct || unpaged) {
            handle.cut = Some(cut);
        }
    }

    /// If a truncation to `size` may be the one that follows on that, the error.
    /// A program's own can look the same.  Who has asked for the size since then,
    /// and the kernel was told another, means it.
    pub fn takes_back(&mut self, fh: Fh, pid: u32, size: u64, told: u64) -> Option<Errno> {
        let cut = self.table.get_mut(&fh)?.cut.take()?;
        let same = (cut.pid, cut.size, cut.told) == (pid, size, told);
        same.then_some(cut.error)
    }

    pub fn lose(&mut self, fh: Fh) {
        if let Some(handle) = self.table.get_mut(&fh) {
            handle.lost = true;
        }
    }

    pub fn is_lost(&self, fh: Fh) -> bool {
        self.table.get(&fh).is_some_and(|handle| handle.lost)
    }

    /// The thread has made the file by opening it so.
    pub fn made(&mut self, fh: Fh, maker: u32) {
        if let Some(handle) = self.table.get_mut(&fh) {
            handle.settles = true;
            handle.maker = Some(maker);
        }
    }

    /// The handle by which the thread has made the file and not closed it yet.
    pub fn made_by(&self, fh: Fh, ino: InodeNo, maker: u32) -> Option<Fh> {
        let handle = self.table.get(&fh)?;
        (handle.ino == ino && handle.maker == Some(maker)).then_some(fh)
    }

    pub fn closing(&mut self, fh: Fh) {
        if let Some(handle) = self.table.get_mut(&fh) {
            handle.maker = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_which_change() {
        let mut pending = Pending::default();
        assert_eq!(
            pending.wait(Some(0..10), "nothing pending"),
            Err("nothing pending")
        );
        pending.begin(ReqId(1), 0..100);
        pending.begin(ReqId(2), 100..200);
        // A change of attributes alone.
        pending.begin(ReqId(3), 0..0);
        assert_eq!(pending.wait(Some(200..300), "beside"), Err("beside"));
        assert_eq!(pending.wait(Some(50..60), "first"), Ok(()));
        assert_eq!(pending.wait(Some(90..110), "both"), Ok(()));
        assert_eq!(pending.wait(None, "all"), Ok(()));
        // Read later, so nobody above waits for it.
        pending.begin(ReqId(4), 0..1000);

        assert_eq!(pending.end(ReqId(1)), ["first"]);
        assert!(pending.end(ReqId(1)).is_empty());
        assert_eq!(pending.end(ReqId(2)), ["both"]);
        assert_eq!(pending.end(ReqId(3)), ["all"]);
        assert!(pending.is_any());
        assert!(pending.end(ReqId(4)).is_empty());
        assert!(!pending.is_any());
    }

    #[test]
    fn an_append_touches_all_behind_it() {
        let mut pending = Pending::default();
        pending.begin(ReqId(1), 100..u64::MAX);
        assert!(pending.wait(Some(0..100), ()).is_err());
        assert!(pending.wait(Some(99..101), ()).is_ok());
        assert!(pending.wait(Some(1 << 60..1 << 61), ()).is_ok());
        assert_eq!(pending.end(ReqId(1)).len(), 2);
    }

    #[test]
    fn errors_stick_until_told() {
        let mut handles = Handles::default();
        let (a, b) = (InodeNo(2), InodeNo(3));
        let writer = handles.open(Handle::new(a, true, false, false));
        let other = handles.open(Handle::new(a, true, false, false));
        let reader = handles.open(Handle::new(a, false, false, false));
        let elsewhere = handles.open(Handle::new(b, true, false, false));

        handles.fail(a, Some(writer), FsError::NoSpace);
        handles.fail(a, Some(writer), FsError::Io);
        assert_eq!(handles.take_error(writer), Some(FsError::NoSpace));
        assert_eq!(handles.take_error(writer), None);
        assert_eq!(handles.take_error(other), None);

        // The kernel hides it if the two are one write(2).
        assert_eq!(handles.write_error(writer, 0, 10, false), None);
        handles.fail(a, Some(writer), FsError::Quota);
        assert_eq!(
            handles.write_error(writer, 10, 5, false),
            Some(FsError::Quota)
        );
        assert_eq!(
            handles.write_error(writer, 10, 5, false),
            Some(FsError::Quota)
        );
        assert_eq!(handles.write_error(writer, 10, 5, false), None);
        handles.fail(a, Some(writer), FsError::Io);
        assert_eq!(handles.write_error(writer, 10, 5, false), Some(FsError::Io));
        assert_eq!(handles.write_error(writer, 15, 5, false), None);

        // From a mapping, or the handle is closed by now.
        handles.close(writer);
        for fh in [None, Some(writer), Some(elsewhere)] {
            handles.fail(a, fh, FsError::Io);
            assert_eq!(handles.take_error(other), Some(FsError::Io));
            assert_eq!(handles.take_error(reader), None);
            assert_eq!(handles.take_error(elsewhere), None);
        }
    }

    #[test]
    fn inodes_live_while_somebody_knows_them() {
        let mut inodes: Inodes<()> = Inodes::new(8);
        let ino = InodeNo(2);
        assert!(inodes.is_known(InodeNo::ROOT));
        inodes.looked_up(ino);
        inodes.looked_up(ino);
        inodes.forget(ino, 1);
        assert!(inodes.is_known(ino));
        inodes.get_or_new(ino).busy().opens = 1;
        inodes.forget(ino, 5);
        assert!(!inodes.is_known(ino));
        assert!(inodes.if_busy(ino).is_some());
        inodes.get_or_new(ino).busy().pending.begin(ReqId(1), 0..1);
        inodes.get_or_new(ino).busy().opens = 0;
        inodes.tidy(ino);
        assert!(inodes.if_busy(ino).is_some(), "a change is under way");
        inodes.get_or_new(ino).busy().pending.end(ReqId(1));
        inodes.tidy(ino);
        assert!(inodes.get(ino).is_none());
    }

    #[test]
    fn attributes_are_kept_for_what_is_known() {
        let mut inodes: Inodes<()> = Inodes::new(8);
        let attr = |ino| Attr {
            ino,
            ..Attr::default()
        };
        let ino = InodeNo(2);
        inodes.keep(&attr(ino));
        assert!(inodes.get(ino).is_none(), "never looked up");
        inodes.looked_up(ino);
        inodes.keep(&attr(ino));
        inodes.keep(&attr(InodeNo::ROOT));
        assert!(inodes.get(ino).unwrap().kept().is_some());
        inodes.get_or_new(ino).busy().pending.begin(ReqId(1), 0..1);
        assert!(inodes.get(ino).unwrap().kept().is_none(), "it changes");
        inodes.get_or_new(ino).busy().pending.end(ReqId(1));
        assert!(inodes.get(ino).unwrap().kept().is_some());
        inodes.clear(ino, false);
        assert!(inodes.get(ino).unwrap().kept().is_none());
        inodes.tidy(InodeNo::ROOT);
        assert!(inodes.get(InodeNo::ROOT).is_some());
        inodes.clear_all(true);
        assert!(inodes.get(InodeNo::ROOT).unwrap().kept().is_none());
    }

    /// Whatever it is answered, until it has forgotten the inode.
    #[test]
    fn who_judged_by_an_owner_that_was() {
        let mut inodes: Inodes<()> = Inodes::new(8);
        let ino = InodeNo(2);
        let attr = |uid| Attr {
            ino,
            uid,
            ..Attr::default()
        };
        inodes.looked_up(ino).show(&attr(1000), 1);
        assert_eq!(inodes.get_or_new(ino).owner(), Some(1000));
        for uid in [0, 1000, 0] {
            inodes.get_or_new(ino).show(&attr(uid), 2);
            inodes.get_or_new(ino).give_away();
            assert_eq!(inodes.get_or_new(ino).owner(), Some(NOBODY));
            inodes.get_or_new(ino).show(&attr(uid), 3);
            assert_eq!(inodes.get_or_new(ino).owner(), Some(NOBODY));
        }
        inodes.get_or_new(ino).busy().opens = 1;
        inodes.forget(ino, 1);
        inodes.looked_up(ino).show(&attr(7), 4);
        assert_eq!(inodes.get_or_new(ino).owner(), Some(7));
    }

    #[test]
    fn a_read_is_told_once() {
        let time = |sec| Time { sec, nsec: 0 };
        let mut inode: Inode<()> = Inode::default();
        let mut attr = Attr {
            ctime: time(5),
            ..Attr::default()
        };
        assert!(inode.show(&attr, 1));
        assert!(inode.is_access_due() && inode.take_access());
        assert!(!inode.take_access());
        // The same once more, since the entry is not there yet.
        inode.note(&attr, 1);
        assert!(!inode.take_access());
        attr.ctime = time(6);
        inode.note(&attr, 2);
        assert!(inode.take_access());
        inode.forget_access();
        assert!(inode.take_access());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        attr.atime = time(now.as_secs() as i64 - 100);
        inode.show(&attr, 3);
        assert!(!inode.is_access_due());
        attr.atime = time(now.as_secs() as i64 - 90_000);
        inode.show(&attr, 4);
        assert!(inode.take_access(), "a day old");
    }

    #[test]
    fn few_inodes_have_bytes_waiting() {
        let mut inodes: Inodes<()> = Inodes::new(8);
        let all: Vec<_> = (2..AHEADS_MAX as u64 + 3).map(InodeNo).collect();
        assert_eq!(inodes.plan_read(all[0], 0, 100), Plan::Plain, "not open");
        for ino in &all {
            inodes.get_or_new(*ino).busy().opens = 1;
            let Plan::Fill(round) = inodes.plan_read(*ino, 0, 100) else {
                panic!("inode {ino}");
            };
            inodes.filled(*ino, round, 0, &[1; 100]);
        }
        let mut has = |ino| matches!(inodes.plan_read(ino, 0, 100), Plan::Have(..));
        assert!(!has(all[0]));
        assert!(all[1..].iter().all(|ino| has(*ino)));
        inodes
            .get_or_new(all[1])
            .busy()
            .pending
            .begin(ReqId(1), 0..1);
        assert_eq!(inodes.plan_read(all[1], 0, 100), Plan::Plain);
    }

    #[test]
    fn older_attributes_are_known_as_such() {
        let mut inode: Inode<()> = Inode::default();
        let mut attr = Attr {
            mode: 0o104755,
            ..Attr::default()
        };
        assert!(inode.show(&attr, 5));
        assert!(!inode.show(&attr, 4));
        assert!(inode.show(&attr, 5));
        attr.mode = 0o100755;
        assert!(inode.note(&attr, 6), "the kernel still believes in the bit");
        assert!(!inode.show(&attr, 5));
        assert!(!inode.note(&attr, 7));
    }
}
