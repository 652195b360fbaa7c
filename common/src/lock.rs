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

//! The vocabulary of file locks.  Pure data; does no I/O.

use serde::{Deserialize, Serialize};

/// Bytes of a file, both ends within.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRange {
    pub start: u64,
    pub end: u64,
}

impl LockRange {
    /// As flock(2) locks a file, and fcntl(2) with length 0.
    pub const WHOLE: LockRange = LockRange {
        start: 0,
        end: i64::MAX as u64,
    };

    pub fn is_valid(&self) -> bool {
        self.start <= self.end
    }

    pub fn overlaps(&self, other: &LockRange) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// Whether the two are one range together.
    pub fn joins(&self, other: &LockRange) -> bool {
        self.start <= other.end.saturating_add(1) && other.start <= self.end.saturating_add(1)
    }

    /// What of this one is outside of the other: before it, and behind it.
    pub fn without(&self, other: &LockRange) -> [Option<LockRange>; 2] {
        let before = other.start.checked_sub(1).filter(|end| *end >= self.start);
        let behind = other.end.checked_add(1).filter(|start| *start <= self.end);
        [
            before.map(|end| LockRange {
                start: self.start,
                end: end.min(self.end),
            }),
            behind.map(|start| LockRange {
                start: start.max(self.start),
                end: self.end,
            }),
        ]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    Shared,
    Exclusive,
}

/// A lock that is in the way of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockInfo {
    pub range: LockRange,
    pub kind: LockKind,
    /// 0 for a process of another node.
    pub pid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let r = |start, end| LockRange { start, end };
        assert!(r(0, 9).overlaps(&r(9, 9)) && !r(0, 9).overlaps(&r(10, 19)));
        assert!(r(0, 9).joins(&r(10, 19)) && !r(0, 9).joins(&r(11, 19)));
        assert!(r(0, u64::MAX).joins(&r(5, 5)));
        assert_eq!(r(0, 9).without(&r(3, 5)), [Some(r(0, 2)), Some(r(6, 9))]);
        assert_eq!(r(0, 9).without(&r(0, 5)), [None, Some(r(6, 9))]);
        assert_eq!(r(0, 9).without(&r(5, 20)), [Some(r(0, 4)), None]);
        assert_eq!(r(3, 5).without(&r(0, u64::MAX)), [None, None]);
        assert_eq!(r(3, 5).without(&r(7, 9)), [Some(r(3, 5)), None]);
        assert_eq!(r(3, 5).without(&r(0, 1)), [None, Some(r(3, 5))]);
        assert!(!r(1, 0).is_valid());
    }
}
