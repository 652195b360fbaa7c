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

//! The bytes of a WRITE beside its log entry: in memory until the log has
//! them on disk, afterwards a place in a log segment.  raftd only.

use crate::store::wal::Segment;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::io;
use std::sync::Arc;

/// Length, checksum and whereabouts.  Only length and crc32c are serialized
/// (u32, u32); the bytes follow by the means of the carrier.
#[derive(Clone, Default)]
pub struct Payload {
    pub len: u32,
    /// crc32c, made by the first raftd that saw the bytes.
    pub crc: u32,
    pub at: At,
}

#[derive(Clone, Default)]
pub enum At {
    /// Decoded, and not yet joined with its bytes; or there are none.
    #[default]
    Nowhere,
    Memory(Bytes),
    /// The reference keeps the segment from being recycled.
    Log {
        segment: Arc<Segment>,
        offset: u64,
    },
}

impl Payload {
    pub fn none() -> Payload {
        Payload::default()
    }

    /// Takes the bytes in and computes their checksum.
    pub fn new(bytes: Bytes) -> Payload {
        Payload {
            len: bytes.len() as u32,
            crc: crc32c::crc32c(&bytes),
            at: At::Memory(bytes),
        }
    }

    /// Joins a decoded payload with the bytes that came beside it.
    pub fn join(&mut self, bytes: Bytes) -> io::Result<()> {
        if bytes.len() != self.len as usize || crc32c::crc32c(&bytes) != self.crc {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "payload: checksum mismatch",
            ));
        }
        self.at = At::Memory(bytes);
        Ok(())
    }

    /// The bytes, read back and verified if they are in the log.
    pub fn bytes(&self) -> io::Result<Bytes> {
        match &self.at {
            At::Memory(b) => Ok(b.clone()),
            At::Nowhere if self.len == 0 => Ok(Bytes::new()),
            At::Nowhere => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "payload: bytes missing",
            )),
            At::Log { segment, offset } => {
                let mut buf = vec![0; self.len as usize];
                segment.read_exact_at(&mut buf, *offset)?;
                if crc32c::crc32c(&buf) != self.crc {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("payload: checksum mismatch in {segment}"),
                    ));
                }
                Ok(Bytes::from(buf))
            }
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = match self.at {
            At::Nowhere => "nowhere",
            At::Memory(_) => "memory",
            At::Log { .. } => "log",
        };
        write!(f, "Payload({} {:08x} {at})", self.len, self.crc)
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        (self.len, self.crc).serialize(s)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Payload, D::Error> {
        let (len, crc) = Deserialize::deserialize(d)?;
        Ok(Payload {
            len,
            crc,
            at: At::Nowhere,
        })
    }
}
