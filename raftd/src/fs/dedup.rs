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

//! Sessions and the exactly-once table: which proposals have been carried
//! out, and what they were answered.  Runs in raftd, pure.

#![forbid(unsafe_code)]

use super::apply::Apply;
use super::inode::{key, key2, number};
use super::op::Origin;
use super::{Outcome, Verdict};
use crate::store::meta::{decode, MetaError, View, Writer};
use common::fs::{NodeId, SessionId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const SESSION: u8 = b't';
const REPLY: u8 = b'r';

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub node: NodeId,
    pub nonce: u64,
    pub lease: Duration,
    /// The seq that must come next.
    pub next: u64,
    /// Replies up to and including this seq are forgotten.
    pub acked: u64,
    /// It has lost locks and may not know that, see lock.rs.
    pub fenced: bool,
}

pub fn session(v: &View<'_>, id: SessionId) -> Result<Option<Session>, MetaError> {
    v.load(&key(SESSION, id.0), "session")
}

pub(super) fn put(tx: &mut Writer<'_>, id: SessionId, session: &Session) -> Result<(), MetaError> {
    tx.save(&key(SESSION, id.0), session, "session")
}

/// All live sessions, oldest first.
pub fn sessions(v: &View<'_>) -> Result<Vec<(SessionId, Session)>, MetaError> {
    v.range(&[], &[SESSION])?
        .map(|item| {
            let (key, value) = item?;
            Ok((SessionId(number(key, 1)?), decode(value, "session")?))
        })
        .collect()
}

/// The live session that this run of this node has opened.
pub fn find(v: &View<'_>, node: NodeId, nonce: u64) -> Result<Option<SessionId>, MetaError> {
    let mut sessions = sessions(v)?.into_iter();
    Ok(sessions
        .find(|(_, s)| s.node == node && s.nonce == nonce)
        .map(|(id, _)| id))
}

/// Whether a proposal is to be carried out.
pub(super) enum Admit {
    /// It is the next of this session.
    Next(Session),
    /// It is not, and this is the verdict.
    No(Verdict),
}

pub(super) fn admit(v: &View<'_>, origin: &Origin) -> Result<Admit, MetaError> {
    let Some(session) = session(v, origin.session)? else {
        return Ok(Admit::No(Verdict::Retired));
    };
    if origin.seq > session.next {
        return Ok(Admit::No(Verdict::Gap {
            expected: session.next,
        }));
    }
    if origin.seq < session.next {
        let stored = v.load(&key2(REPLY, origin.session.0, origin.seq), "reply")?;
        return Ok(Admit::No(Verdict::Duplicate(stored)));
    }
    Ok(Admit::Next(session))
}

/// The outcome of the proposal that was admitted, for those who ask again;
/// what the session has acknowledged is forgotten.
pub(super) fn record(
    tx: &mut Writer<'_>,
    origin: &Origin,
    mut session: Session,
    outcome: &Outcome,
) -> Result<(), MetaError> {
    tx.save(&key2(REPLY, origin.session.0, origin.seq), outcome, "reply")?;
    session.next += 1;
    while session.acked < origin.acked.min(origin.seq - 1) {
        session.acked += 1;
        tx.delete(&key2(REPLY, origin.session.0, session.acked))?;
    }
    put(tx, origin.session, &session)
}

impl Apply<'_, '_> {
    /// A raftd has started.  Asked again by the same run, the session that it
    /// has stays.  Nonces of one node grow with its runs.
    pub(super) fn open_session(
        &mut self,
        node: NodeId,
        nonce: u64,
        lease: Duration,
    ) -> Result<(), MetaError> {
        let all = sessions(self.tx)?;
        // This run's, or a later one's: what comes now was long under way.
        if all.iter().any(|(_, s)| s.node == node && s.nonce >= nonce) {
            return Ok(());
        }
        for (id, session) in all {
            if session.node == node {
                self.retire(id)?;
            }
        }
        let session = Session {
            node,
            nonce,
            lease,
            next: 1,
            acked: 0,
            fenced: false,
        };
        put(self.tx, SessionId(self.index), &session)
    }

    fn retire(&mut self, id: SessionId) -> Result<(), MetaError> {
        let mut replies = Vec::new();
        for item in self.tx.range(&[], &key(REPLY, id.0))? {
            replies.push(item?.0.to_vec());
        }
        for key in replies {
            self.tx.delete(&key)?;
        }
        self.tx.delete(&key(SESSION, id.0))?;
        self.reset_locks(id)?;
        self.release_all(id)
    }
}
