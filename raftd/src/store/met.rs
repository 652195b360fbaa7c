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

//! The peers that this node has met, and which data directory each had then.
//! Runs in raftd.  A node whose directory was lost and made anew under its old
//! id would have forgotten what it acknowledged and for whom it voted; so the
//! others know the directory, not just the node.
//!
//! ```text
//! peers, a text file, a line for each peer ever met:
//!   N ID        id of the node, decimal; id of its store, 16 hexadecimal digits
//! ```
//!
//! It only grows, and a line is on disk before the peer is talked to, so that
//! whatever that peer acknowledges it acknowledges with this directory.

use common::fs::NodeId;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{read_to_string, rename, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

const NAME: &str = "peers";
const NEW: &str = "peers.new";

/// Tells a data directory from any other, also of the same node.  Random, and
/// never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreId(pub u64);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl StoreId {
    pub fn parse(text: &str) -> Option<StoreId> {
        let id = u64::from_str_radix(text, 16).ok()?;
        (id != 0 && text.len() == 16).then_some(StoreId(id))
    }
}

/// What a meeting comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Meeting {
    First,
    Again,
    /// It had another store when it was met first.
    Another,
}

pub struct Met {
    dir: PathBuf,
    peers: Mutex<BTreeMap<NodeId, StoreId>>,
}

impl Met {
    pub fn open(dir: &Path) -> io::Result<Met> {
        let mut peers = BTreeMap::new();
        let text = match read_to_string(dir.join(NAME)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        for line in text.lines() {
            let (node, id) = parse(line).ok_or(io::ErrorKind::InvalidData)?;
            peers.insert(node, id);
        }
        Ok(Met {
            dir: dir.to_owned(),
            peers: Mutex::new(peers),
        })
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeId, StoreId>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn store_of(&self, node: NodeId) -> Option<StoreId> {
        self.peers().get(&node).copied()
    }

    /// Durably; may wait for the disk at the first meeting.
    pub fn meet(&self, node: NodeId, id: StoreId) -> io::Result<Meeting> {
        let mut peers = self.peers();
        match peers.get(&node) {
            Some(known) if *known == id => return Ok(Meeting::Again),
            Some(_) => return Ok(Meeting::Another),
            None => {}
        }
        let mut all = peers.clone();
        all.insert(node, id);
        self.save(&all)?;
        *peers = all;
        Ok(Meeting::First)
    }

    fn save(&self, peers: &BTreeMap<NodeId, StoreId>) -> io::Result<()> {
        let new = self.dir.join(NEW);
        let mut file = File::create(&new)?;
        for (node, id) in peers {
            writeln!(file, "{node} {id}")?;
        }
        file.sync_all()?;
        rename(&new, self.dir.join(NAME))?;
        File::open(&self.dir)?.sync_all()
    }
}

fn parse(line: &str) -> Option<(NodeId, StoreId)> {
    let (node, id) = line.split_once(' ')?;
    Some((NodeId(node.parse().ok()?), StoreId::parse(id)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_store_is_met_once() {
        let dir = std::env::temp_dir().join(format!("dfsd-met-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let met = Met::open(&dir).unwrap();
        let (a, b) = (StoreId(0xab), StoreId(0xcd));
        assert_eq!(met.store_of(NodeId(2)), None);
        assert_eq!(met.meet(NodeId(2), a).unwrap(), Meeting::First);
        assert_eq!(met.meet(NodeId(3), b).unwrap(), Meeting::First);
        let met = Met::open(&dir).unwrap();
        assert_eq!(met.meet(NodeId(2), a).unwrap(), Meeting::Again);
        assert_eq!(met.meet(NodeId(2), b).unwrap(), Meeting::Another);
        assert_eq!(met.store_of(NodeId(2)), Some(a));
        for bad in ["2", "2 ab", "x 00000000000000ab", "2 0000000000000000"] {
            fs::write(dir.join("peers"), bad).unwrap();
            assert!(Met::open(&dir).is_err(), "{bad}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
