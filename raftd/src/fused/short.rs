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

//! Where little room is left.  A write there is answered when it is applied, so
//! that write(2) itself tells of the error: many programs do not ask close(2).
//! Elsewhere it is answered when it is queued.  raftd only.

use super::{locked, Fused, Mounts};
use crate::fs::{inode, quota, space};
use crate::store::meta::MetaError;
use common::fatal;
use common::fs::{InodeNo, TreeNo};
use common::msg::RaftdToFused;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// How often is looked whether something was applied.  Who writes more than
/// space::SHORT within that time hears of the error from fsync(2) or close(2).
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Default, PartialEq, Eq)]
pub(super) struct Short {
    whole: bool,
    trees: HashSet<TreeNo>,
}

impl Short {
    pub(super) fn is_any(&self) -> bool {
        self.whole || !self.trees.is_empty()
    }
}

impl Mounts {
    /// Keeps account of it, and tells every fused whether there is any.
    pub async fn watch_room(self: Arc<Self>) {
        let mut applied = self.applied.clone();
        loop {
            let found = match self.find_short() {
                Ok(found) => found,
                Err(e) => fatal!(e, "store"),
            };
            self.set_short(found);
            tokio::time::sleep(LOOK_INTERVAL).await;
            if applied.changed().await.is_err() {
                return;
            }
        }
    }

    /// Told under the lock, so that the last that a fused hears is true.
    fn set_short(&self, found: Short) {
        let mut short = locked(&self.short);
        let was = std::mem::replace(&mut *short, found).is_any();
        if was != short.is_any() {
            for fused in self.all() {
                fused.push(&RaftdToFused::Short(short.is_any()));
            }
        }
    }

    pub(super) fn tell_short(&self, fused: &Fused) {
        let short = locked(&self.short);
        fused.push(&RaftdToFused::Short(short.is_any()));
    }

    fn find_short(&self) -> Result<Short, MetaError> {
        let reader = self.store.meta().read();
        Ok(Short {
            whole: space::is_short(&reader)?,
            trees: quota::short(&reader)?,
        })
    }

    pub(super) fn is_any_short(&self) -> bool {
        locked(&self.short).is_any()
    }

    pub(super) fn is_short(&self, ino: InodeNo) -> bool {
        let short = locked(&self.short);
        if short.whole || short.trees.is_empty() {
            return short.whole;
        }
        let inode = inode::get(&self.store.meta().read(), ino);
        inode.is_ok_and(|inode| inode.is_some_and(|inode| short.trees.contains(&inode.tree)))
    }
}
