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

//! Checkpoints: a thread of raftd that brings what apply has changed to the
//! disk, so that the log up to there is no longer needed.  Apply and readers
//! go on meanwhile; only the freeze happens between two entries.  An error
//! ends the process: after a failed sync nobody knows what is on the disk, but
//! the last checkpoint and the log from there on are.  Only when LMDB finds no
//! room has nothing happened, and step 3 is tried again until there is some.
//!
//! The sequence, and what a crash right after each step leaves.  "Replay" is
//! openraft giving apply the log again from the last committed checkpoint.
//!
//! 1. Between two entries: the overlay is frozen, the set of dirty files taken,
//!    the list of dead ones put into the frozen overlay, C is the last entry
//!    applied.  The local log has C on disk, for apply waits for that.
//!    Crash: nothing has happened; all of this was memory.
//! 2. Every dirty backing file is synced, then the directories with new or
//!    removed entries.  Apply may write to these files again meanwhile, so that
//!    what arrives is C or later.
//!    Crash: metadata is of the checkpoint before, files are of any time since.
//!    Replay does every operation since again, in order, and the last one that
//!    touched a byte decides about it, however much of them was there before.
//! 3. LMDB commits the frozen overlay, in one transaction, with C in it.
//!    Crash before the end: as 2.  Crash after it: metadata is C, and all files
//!    of its inodes are there, at C or later.  Replay begins at C + 1.
//! 4. Files whose inodes were gone at C are unlinked.  Replay cannot name them:
//!    inode numbers are never used again.
//!    Crash: the list is in LMDB; the next start reads it and the checkpoint
//!    after that unlinks what is left.  An unlinked file that comes back since
//!    its directory was not synced is on that list as well, or its directory is
//!    synced with the next checkpoint, before the list is replaced.
//! 5. C is published.
//!    Crash: the log is longer than it needs to be.
//!
//! What the owner of the Raft does when C has been published, so that the log
//! is freed (to openraft a checkpoint is a snapshot, and it purges nothing
//! beyond its last one):
//!
//! 1. `raft.trigger().snapshot()`: openraft asks the state machine for its
//!    snapshot, and gets the checkpoint as it is then.  Lost if it is already
//!    asking for one, so it is repeated with the next checkpoint.
//! 2. Wait until `metrics().snapshot` has reached C.  A purge that comes before
//!    is cut down to the snapshot that openraft knows.
//! 3. `raft.trigger().purge_log(min(C, floor))`.  A leader puts it off while a
//!    replication stream is using these entries.  When the floor moves later,
//!    this step alone.
//!
//! When the log stands still on a full disk, apply waits for it and openraft
//! for apply, so that it cannot take notice of anything.  The log is freed
//! behind its back then; it comes to know by the same steps when the log goes
//! on.
//!
//! openraft's own purging must be off: `max_in_snapshot_log_to_keep` is
//! u64::MAX, and `snapshot_policy` is Never.

#![forbid(unsafe_code)]

use super::meta::{self, Meta, MetaError};
use super::Store;
use common::fs::InodeNo;
use common::{fatal, fatalx, log_debug, log_info, log_warnx};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Log since the last checkpoint, in bytes and entries.  A segment that comes
/// back soon is still in the page cache, and new ones cost a write of zeros.
const LOG_BYTES: u64 = 256 << 20;
const LOG_ENTRIES: u64 = 500_000;
/// Memory of the overlay; while it is committed there is another one, and LMDB
/// has its changed pages in memory.
const OVERLAY_BYTES: usize = 8 << 20;
/// Whatever there is to do waits no longer than this.
const INTERVAL: Duration = Duration::from_secs(30);
/// Between two attempts when the disk is full.
const RETRY: Duration = Duration::from_secs(1);

/// Files whose inodes are gone with this checkpoint, to be unlinked after it.
const DEAD: &[u8] = b"!dead";

/// What is asked of the thread.
#[derive(Default)]
pub(super) struct Asked {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    entries: u64,
    bytes: u64,
    due: bool,
    running: bool,
    stop: bool,
    waiting: Vec<oneshot::Sender<bool>>,
}

impl Asked {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more entry has been applied.
    pub(super) fn count(&self, bytes: u64, overlay: usize) {
        let mut state = self.state();
        state.entries += 1;
        state.bytes += bytes;
        let due =
            state.entries >= LOG_ENTRIES || state.bytes >= LOG_BYTES || overlay >= OVERLAY_BYTES;
        if due && !state.due {
            state.due = true;
            self.wake.notify_one();
        }
    }

    /// One is due, however little there is for it.
    pub(super) fn hurry(&self) {
        self.state().due = true;
        self.wake.notify_one();
    }

    /// Somebody wants one and waits; false if nobody makes any.
    fn ask(&self, done: oneshot::Sender<bool>) -> bool {
        let mut state = self.state();
        if state.running {
            state.waiting.push(done);
            self.wake.notify_one();
        }
        state.running
    }

    /// The thread ends, and who came too late is told so.
    fn end(&self) {
        let mut state = self.state();
        state.running = false;
        state.waiting.clear();
    }

    /// Between two entries: what comes now is for the next checkpoint.
    fn restart(&self) {
        let mut state = self.state();
        state.entries = 0;
        state.bytes = 0;
        state.due = false;
    }

    /// It cannot be now; the next entry asks again.
    fn postpone(&self) {
        self.state().due = false;
    }

    /// Sleeps a while; true if it is the end.
    fn pause(&self) -> bool {
        let state = self.state();
        let woken = self.wake.wait_timeout_while(state, RETRY, |s| !s.stop);
        woken.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    /// Sleeps until there is something to do.  Answers who waits for it, and
    /// whether it is the last time.
    fn wait(&self) -> (Vec<oneshot::Sender<bool>>, bool) {
        let mut end = Instant::now() + INTERVAL;
        let mut state = self.state();
        while !state.due && !state.stop && state.waiting.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if state.entries > 0 {
                    break;
                }
                end += INTERVAL;
            }
            let woken = self.wake.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        (std::mem::take(&mut state.waiting), state.stop)
    }
}

/// The running thread.
pub struct Checkpoint {
    store: Arc<Store>,
    thread: JoinHandle<()>,
}

impl Checkpoint {
    pub fn start(store: Arc<Store>) -> io::Result<Checkpoint> {
        {
            let mut state = store.asked.state();
            state.running = true;
            state.stop = false;
        }
        let thread = thread::Builder::new().name("checkpoint".into());
        let thread = thread.spawn({
            let store = store.clone();
            move || run(&store)
        })?;
        Ok(Checkpoint { store, thread })
    }

    /// Makes one now, with all that is applied so far, and waits for it.
    /// False if apply is in the middle of an entry that the disk refuses, or
    /// the thread has ended.
    pub async fn request(&self) -> bool {
        let (done, wait) = oneshot::channel();
        if !self.store.asked.ask(done) {
            return false;
        }
        wait.await.unwrap_or(false)
    }

    /// The last one, after openraft has stopped.  Blocks until it is made.
    pub fn shutdown(self) {
        self.store.asked.state().stop = true;
        self.store.asked.wake.notify_one();
        let _ = self.thread.join();
    }
}

fn run(store: &Store) {
    loop {
        let (waiting, stop) = store.asked.wait();
        let made = checkpoint(store);
        for done in waiting {
            let _ = done.send(made);
        }
        if stop {
            store.asked.end();
            return;
        }
    }
}

fn checkpoint(store: &Store) -> bool {
    let began = Instant::now();
    let at = store.at.blocking_lock();
    if at.unfinished {
        store.asked.postpone();
        return false;
    }
    let position = at.position.clone();
    if position.last_applied == store.checkpointed().last_applied {
        store.asked.restart();
        return true;
    }
    let dirty = store.data.take_dirty();
    put_dead(&store.meta, &dirty.dead).unwrap_or_else(|e| fatal!(e, "checkpoint"));
    if !store.meta.freeze() {
        fatalx!("checkpoint: the last one is not committed");
    }
    store.asked.restart();
    drop(at);

    store.syncing.store(true, Ordering::Relaxed);
    if let Err(e) = store.data.sync(&dirty) {
        fatal!(e, "checkpoint");
    }
    store.syncing.store(false, Ordering::Relaxed);
    if !commit(store) {
        return false;
    }
    let left = store.data.unlink(&dirty.dead);
    store.data.bury(left);
    log_debug!(
        "checkpoint {:?} in {} ms",
        position.index(),
        began.elapsed().as_millis()
    );
    store.publish(position);
    // The overlay was large and in small pieces, and is gone now; and LMDB has
    // looked at pages that nobody will want for a while.
    common::sys::malloc::trim();
    common::sys::maps::release(meta::MAP_PATH);
    true
}

/// Step 3.  A full disk is waited for; false if that is at the end, when the
/// log has all of it.
fn commit(store: &Store) -> bool {
    let mut told = false;
    loop {
        let full = || store.data.room().is_ok_and(|room| room.bytes == 0);
        match store.meta.commit_frozen() {
            Ok(()) => break,
            Err(e) if e.is_full_disk(full()) => {
                if !std::mem::replace(&mut told, true) {
                    log_warnx!("checkpoint: {e}");
                }
                store.set_alarm(Some(format!("checkpoint: {e}")));
                if store.asked.pause() {
                    return false;
                }
            }
            Err(e) => fatal!(e, "checkpoint"),
        }
    }
    if told {
        store.set_alarm(None);
        log_info!("checkpoint goes on");
    }
    true
}

/// A list in one value, written only when it or the last one says something.
fn put_dead(meta: &Meta, dead: &[InodeNo]) -> Result<(), MetaError> {
    let mut tx = meta.write();
    if dead.is_empty() && tx.get(DEAD)?.is_none() {
        return Ok(());
    }
    match dead {
        [] => tx.delete(DEAD),
        dead => tx.save(DEAD, &dead, "dead files"),
    }
}

/// What the last checkpoint may have left to unlink.
pub(super) fn dead(meta: &Meta) -> Result<Vec<InodeNo>, MetaError> {
    match meta.get_committed(DEAD)? {
        Some(value) => meta::decode(&value, "dead files"),
        None => Ok(Vec::new()),
    }
}
