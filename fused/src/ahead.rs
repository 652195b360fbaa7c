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

//! Reading ahead for a kernel that does not, and that has no pages to keep
//! bytes in: a program that reads 2 KiB at a time is answered from what one
//! READ of 128 KiB has brought.  fused only; pure bookkeeping.
//!
//! ```text
//!   READ where the last one ended --> fill --> bytes --> READs answered
//!                                      |         |
//!              a change of the inode --+---------+--> dropped
//! ```

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

/// Bytes that are read at once.
pub const AHEAD: u32 = 128 << 10;
/// Who reads so much at once gains nothing.
const SMALL_MAX: u32 = AHEAD / 2;
/// Most inodes that have bytes waiting: 8 MiB.
pub const AHEADS_MAX: usize = 64;

/// Names a fill; what has changed since, it must not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round(u64);

/// How a READ is answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan {
    /// With these bytes.
    Have(Arc<Vec<u8>>, Range<usize>),
    /// Read AHEAD bytes instead, answer with the first of them, and give them
    /// to `filled`.
    Fill(Round),
    /// As it was asked.
    Plain,
}

/// What was read of one inode.
#[derive(Default)]
pub struct Ahead {
    /// Where a sequential reader goes on.
    next: u64,
    /// Of the first byte.
    offset: u64,
    bytes: Option<Arc<Vec<u8>>>,
    /// The file ends behind them.
    end: bool,
    round: u64,
    filling: bool,
}

impl Ahead {
    pub fn plan(&mut self, offset: u64, size: u32) -> Plan {
        let sequential = offset == self.next;
        self.next = offset.saturating_add(u64::from(size));
        if let Some((bytes, range)) = self.find(offset, size) {
            return Plan::Have(bytes, range);
        }
        if !sequential || self.filling || size > SMALL_MAX {
            return Plan::Plain;
        }
        self.filling = true;
        Plan::Fill(Round(self.round))
    }

    fn find(&self, offset: u64, size: u32) -> Option<(Arc<Vec<u8>>, Range<usize>)> {
        let bytes = self.bytes.clone()?;
        let from = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        let to = from.checked_add(size as usize)?;
        let len = bytes.len();
        let range = match to <= len {
            true => from..to,
            false if self.end => from.min(len)..len,
            false => return None,
        };
        Some((bytes, range))
    }

    /// What a fill has read; fewer than AHEAD are the end of the file.  False
    /// if they are worth nothing by now.
    pub fn filled(&mut self, round: Round, offset: u64, bytes: &[u8]) -> bool {
        if round != Round(self.round) {
            return false;
        }
        self.filling = false;
        self.offset = offset;
        self.bytes = Some(Arc::new(bytes.to_vec()));
        self.end = bytes.len() < AHEAD as usize;
        true
    }

    /// The inode has changed, or a fill has failed.
    pub fn clear(&mut self) {
        *self = Ahead {
            next: self.next,
            round: self.round + 1,
            ..Ahead::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn have(plan: Plan) -> Vec<u8> {
        match plan {
            Plan::Have(bytes, range) => bytes[range].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn fill(plan: Plan) -> Round {
        match plan {
            Plan::Fill(round) => round,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_fill_for_many_reads() {
        let mut ahead = Ahead::default();
        let bytes: Vec<u8> = (0..AHEAD).map(|i| (i >> 8) as u8).collect();
        let round = fill(ahead.plan(0, 2048));
        assert_eq!(ahead.plan(2048, 2048), Plan::Plain, "one fill at a time");
        assert!(ahead.filled(round, 0, &bytes));
        for at in (0..u64::from(AHEAD)).step_by(2048) {
            let from = at as usize;
            assert_eq!(have(ahead.plan(at, 2048)), bytes[from..from + 2048]);
        }
        // The next, and then the end.
        let at = u64::from(AHEAD);
        let round = fill(ahead.plan(at, 2048));
        assert!(ahead.filled(round, at, &[7; 3000]));
        assert_eq!(have(ahead.plan(at, 2048)), [7; 2048]);
        assert_eq!(have(ahead.plan(at + 2048, 2048)), [7; 952]);
        assert_eq!(have(ahead.plan(at + 3000, 2048)), [0; 0]);
        assert_eq!(have(ahead.plan(at + 9999, 1)), [0; 0]);
    }

    #[test]
    fn what_is_not_read_ahead() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.plan(0, AHEAD), Plan::Plain);
        assert_eq!(ahead.plan(500, 100), Plan::Plain);
        assert_eq!(ahead.plan(700, 100), Plan::Plain);
        fill(ahead.plan(800, 100));
        assert_eq!(ahead.plan(u64::MAX, 100), Plan::Plain);
    }

    #[test]
    fn nothing_survives_a_change() {
        let mut ahead = Ahead::default();
        let round = fill(ahead.plan(0, 100));
        ahead.clear();
        assert!(!ahead.filled(round, 0, b"old"));
        let round = fill(ahead.plan(100, 100));
        assert!(ahead.filled(round, 0, &[1; 500]));
        assert_eq!(have(ahead.plan(200, 100)), [1; 100]);
        ahead.clear();
        fill(ahead.plan(300, 100));
    }
}
