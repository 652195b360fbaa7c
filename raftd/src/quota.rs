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

//! Quotas as dfsctl sets and shows them, and the leader's task that has what
//! was there before counted.  raftd only; the rules are in fs/quota.rs.

use crate::engine::Engine;
use crate::fs::inode::{self, Contents, ReadError};
use crate::fs::op::Op;
use crate::fs::quota::{self, Quota};
use crate::fs::{dirent, space, Outcome};
use crate::propose::How;
use bytes::Bytes;
use common::ctl::{CtlQuota, CtlResult};
use common::fs::{Cookie, FsError, InodeNo, BLOCK};
use common::{fatal, log_debug};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::time::sleep;

/// How often the leader looks whether something is left to count.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Entries that are counted at a time.
const BATCH: u32 = 500;
/// For an operation to be carried out.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a listing in which a name is looked for at a time, so that apply
/// never waits long.
const LISTING: usize = 64 << 10;

/// Proposes, and waits until this node has applied it.
async fn carry_out(engine: &Engine, op: Op) -> Outcome {
    let proposer = &engine.proposer;
    let room = proposer.room(0).await;
    let how = How {
        deadline: Instant::now() + LIMIT,
        from: None,
        awaited: true,
    };
    let (tx, rx) = oneshot::channel();
    let done = Box::new(move |_, outcome| {
        let _ = tx.send(outcome);
    });
    proposer.propose(op, Bytes::new(), how, room, done);
    rx.await.unwrap_or(Err(FsError::Io))
}

/// The leader's task: goes on with what is not counted, whoever began it.
pub async fn count(engine: Arc<Engine>) {
    loop {
        let found = match engine.raft().is_leader() {
            true => quota::unfinished(&engine.store.meta().read()),
            false => Ok(None),
        };
        let counted = match found {
            Ok(Some(tree)) => carry_out(&engine, Op::Adopt { tree, max: BATCH }).await,
            Ok(None) => {
                sleep(LOOK_INTERVAL).await;
                continue;
            }
            Err(e) => fatal!(e, "store"),
        };
        if let Err(e) = counted {
            log_debug!("quota: {e}");
            sleep(LOOK_INTERVAL).await;
        }
    }
}

fn broken(e: ReadError) -> CtlResult {
    match e {
        ReadError::Fs(e) => CtlResult::Refused(e),
        ReadError::Meta(e) => fatal!(e, "store"),
    }
}

/// What the path means, with all that was done before the call.
async fn resolve(engine: &Engine, path: &str) -> Result<InodeNo, CtlResult> {
    let waited = engine.barrier.wait(Instant::now() + LIMIT).await;
    waited.map_err(CtlResult::Refused)?;
    engine.resolve(Path::new(path)).map_err(broken)
}

/// Sets or takes away the quota of what is at the path.
pub async fn change(engine: &Engine, path: &str, op: impl FnOnce(InodeNo) -> Op) -> CtlResult {
    let ino = match resolve(engine, path).await {
        Ok(ino) => ino,
        Err(result) => return result,
    };
    let op = op(ino);
    let drops = matches!(op, Op::DropQuota { .. });
    match carry_out(engine, op).await {
        Ok(_) => CtlResult::Ok,
        Err(FsError::CrossTree) => CtlResult::NestedQuota,
        Err(FsError::NotFound) if drops => CtlResult::NoQuota,
        Err(e) => CtlResult::Refused(e),
    }
}

/// The quota of the tree that the path lies in, or without one all of them,
/// that of the whole first.
pub async fn show(engine: &Engine, path: Option<&str>) -> Result<Vec<CtlQuota>, CtlResult> {
    let ino = resolve(engine, path.unwrap_or("/")).await?;
    let quotas = found(engine, path.map(|_| ino)).map_err(broken)?;
    let mut records = Vec::new();
    if quotas.is_empty() || path.is_none() {
        records.push(whole(engine).map_err(broken)?);
    }
    for quota in quotas {
        // A directory that was removed meanwhile has no name.
        if let Some(path) = path_of(engine, quota.root).map_err(broken)? {
            records.push(CtlQuota {
                path: String::from_utf8_lossy(&path).into_owned(),
                used_bytes: quota.used_blocks.saturating_mul(BLOCK),
                limit_bytes: quota.limit.bytes,
                used_inodes: quota.used_inodes,
                limit_inodes: quota.limit.inodes,
                counting: quota.counting,
            });
        }
    }
    Ok(records)
}

fn found(engine: &Engine, ino: Option<InodeNo>) -> Result<Vec<Quota>, ReadError> {
    let reader = engine.store.meta().read();
    match ino {
        None => Ok(quota::list(&reader)?),
        Some(ino) => {
            let inode = inode::load(&reader, ino)?;
            Ok(quota::of(&reader, &inode)?.into_iter().collect())
        }
    }
}

fn whole(engine: &Engine) -> Result<CtlQuota, ReadError> {
    let sup = space::load(&engine.store.meta().read())?;
    Ok(CtlQuota {
        path: "/".into(),
        used_bytes: sup.counted_blocks().saturating_mul(BLOCK),
        limit_bytes: sup.limit.bytes,
        used_inodes: sup.used_inodes,
        limit_inodes: sup.limit.inodes,
        counting: false,
    })
}

/// The path of a directory; None if it has lost its name, or one above it has
/// been given another one just now.
fn path_of(engine: &Engine, dir: InodeNo) -> Result<Option<Vec<u8>>, ReadError> {
    let mut path = Vec::new();
    let mut at = dir;
    while at != InodeNo::ROOT {
        let inode = match inode::get(&engine.store.meta().read(), at)? {
            Some(inode) if inode.nlink > 0 => inode,
            _ => return Ok(None),
        };
        let Contents::Directory { parent, .. } = inode.contents else {
            return Ok(None);
        };
        let Some(name) = name_of(engine, parent, at)? else {
            return Ok(None);
        };
        path.splice(0..0, [b"/", name.as_slice()].concat());
        at = parent;
    }
    Ok(Some(path))
}

fn name_of(engine: &Engine, parent: InodeNo, ino: InodeNo) -> Result<Option<Vec<u8>>, ReadError> {
    // Behind `.` and `..`.
    let mut after = Cookie(2);
    loop {
        let (entries, eof) = {
            let reader = engine.store.meta().read();
            dirent::readdir(&reader, parent, after, LISTING, false)?
        };
        after = entries.last().map_or(after, |e| e.next);
        let found = entries.into_iter().find(|e| e.ino == ino);
        if found.is_some() || eof {
            return Ok(found.map(|e| e.name));
        }
    }
}
