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

//! POSIX ACLs, as Linux keeps them in extended attributes: what a chmod and
//! the making of a file do to them.  Runs in raftd, pure.  Who may do what by
//! an ACL the kernel decides.
//!
//! Integers are little-endian:
//!
//! | offset | size | field                                          |
//! | ------ | ---- | ---------------------------------------------- |
//! |      0 |    4 | version, 2                                     |
//! |      4 |    8 | each entry: tag 2, permissions 2, uid or gid 4 |

#![forbid(unsafe_code)]

use common::fs::FsError;

const VERSION: [u8; 4] = 2u32.to_le_bytes();

/// Tags, in the order that entries must have.
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

const RWX: u16 = 0o7;
const UNDEFINED_ID: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// One of each of owner, group and other; a mask if users or groups are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// What is not an ACL is Invalid.
    pub fn decode(bytes: &[u8]) -> Result<Acl, FsError> {
        let entries = bytes.strip_prefix(&VERSION).ok_or(FsError::Invalid)?;
        let (entries, rest) = entries.as_chunks::<8>();
        let acl = Acl(entries.iter().map(Entry::decode).collect());
        match rest.is_empty() && acl.is_valid() {
            true => Ok(acl),
            false => Err(FsError::Invalid),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let entries = self.0.iter().flat_map(|e| e.encode());
        VERSION.into_iter().chain(entries).collect()
    }

    /// Tags in their order, each of those that must be there once.
    fn is_valid(&self) -> bool {
        let mut last = 0;
        let mut named = false;
        for e in &self.0 {
            let many = matches!(e.tag, USER | GROUP);
            let after = match e.tag {
                USER_OBJ => last == 0,
                USER => matches!(last, USER_OBJ | USER),
                GROUP_OBJ => matches!(last, USER_OBJ | USER),
                GROUP => matches!(last, GROUP_OBJ | GROUP),
                MASK => matches!(last, GROUP_OBJ | GROUP),
                OTHER => matches!(last, MASK) || last == GROUP_OBJ && !named,
                _ => false,
            };
            if !after || e.perm & !RWX != 0 || many && e.id == UNDEFINED_ID {
                return false;
            }
            named |= many;
            last = e.tag;
        }
        last == OTHER
    }

    /// The permission bits of a mode that say the same, or as much of it as
    /// they can; whether they say all.
    pub fn mode(&self) -> (u32, bool) {
        let mut all = true;
        let mut mode = 0;
        for e in &self.0 {
            let perm = u32::from(e.perm);
            match e.tag {
                USER_OBJ => mode |= perm << 6,
                GROUP_OBJ => mode |= perm << 3,
                OTHER => mode |= perm,
                MASK => {
                    mode = mode & !0o070 | perm << 3;
                    all = false;
                }
                _ => all = false,
            }
        }
        (mode, all)
    }

    /// The entry that the group bits of a mode stand for.
    fn group_class(&self) -> u16 {
        match self.0.iter().any(|e| e.tag == MASK) {
            true => MASK,
            false => GROUP_OBJ,
        }
    }

    /// What chmod(2) makes of it.
    pub fn chmod(&mut self, mode: u32) {
        let class = self.group_class();
        for e in &mut self.0 {
            match e.tag {
                USER_OBJ => e.perm = bits(mode, 6),
                OTHER => e.perm = bits(mode, 0),
                tag if tag == class => e.perm = bits(mode, 3),
                _ => {}
            }
        }
    }

    /// Makes of the default ACL of a directory the ACL of what is created in
    /// it with this mode; what is left of its permission bits.
    pub fn create(&mut self, mode: u32) -> u32 {
        let class = self.group_class();
        for e in &mut self.0 {
            match e.tag {
                USER_OBJ => e.perm &= bits(mode, 6),
                OTHER => e.perm &= bits(mode, 0),
                tag if tag == class => e.perm &= bits(mode, 3),
                _ => {}
            }
        }
        self.mode().0
    }
}

fn bits(mode: u32, shift: u32) -> u16 {
    (mode >> shift) as u16 & RWX
}

impl Entry {
    fn decode(bytes: &[u8; 8]) -> Entry {
        let [a, b, c, d, id @ ..] = *bytes;
        let tag = u16::from_le_bytes([a, b]);
        Entry {
            tag,
            perm: u16::from_le_bytes([c, d]),
            id: match tag {
                USER | GROUP => u32::from_le_bytes(id),
                _ => UNDEFINED_ID,
            },
        }
    }

    fn encode(&self) -> [u8; 8] {
        let ([a, b], [c, d]) = (self.tag.to_le_bytes(), self.perm.to_le_bytes());
        let [e, f, g, h] = self.id.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entry = |&(tag, perm, id)| Entry { tag, perm, id };
        Acl(entries.iter().map(entry).collect()).encode()
    }

    const NO: u32 = UNDEFINED_ID;
    const MINIMAL: [(u16, u16, u32); 3] = [(USER_OBJ, 6, NO), (GROUP_OBJ, 4, NO), (OTHER, 0, NO)];
    const NAMED: [(u16, u16, u32); 6] = [
        (USER_OBJ, 7, NO),
        (USER, 6, 1000),
        (GROUP_OBJ, 5, NO),
        (GROUP, 7, 100),
        (MASK, 6, NO),
        (OTHER, 1, NO),
    ];

    #[test]
    fn what_is_an_acl() {
        for good in [&MINIMAL[..], &NAMED] {
            let bytes = bytes(good);
            assert_eq!(Acl::decode(&bytes).unwrap().encode(), bytes);
            for cut in 0..bytes.len() {
                assert_eq!(Acl::decode(&bytes[..cut]), Err(FsError::Invalid), "{cut}");
            }
            assert!(Acl::decode(&[&bytes[..], b"\0"].concat()).is_err());
        }
        let bad = |entries: &[_]| assert!(Acl::decode(&bytes(entries)).is_err(), "{entries:?}");
        bad(&[]);
        bad(&MINIMAL[1..]);
        bad(&[MINIMAL[1], MINIMAL[0], MINIMAL[2]]);
        bad(&[MINIMAL[0], MINIMAL[0], MINIMAL[1], MINIMAL[2]]);
        bad(&[MINIMAL[0], (USER, 6, 1), MINIMAL[1], MINIMAL[2]]);
        bad(&[MINIMAL[0], (USER, 6, NO), MINIMAL[1], NAMED[4], MINIMAL[2]]);
        bad(&[MINIMAL[0], MINIMAL[1], (OTHER, 8, NO)]);
        bad(&[MINIMAL[0], MINIMAL[1], (0x40, 0, NO), MINIMAL[2]]);
        bad(&[MINIMAL[0], MINIMAL[1], MINIMAL[2], MINIMAL[2]]);
        let mut other = bytes(&MINIMAL);
        other[0] = 1;
        assert!(Acl::decode(&other).is_err());
    }

    #[test]
    fn ids_that_mean_nothing_are_not_kept() {
        let odd = bytes(&[(USER_OBJ, 6, 5), (GROUP_OBJ, 4, 6), (OTHER, 0, 7)]);
        assert_eq!(Acl::decode(&odd).unwrap().encode(), bytes(&MINIMAL));
    }

    #[test]
    fn modes() {
        let minimal = Acl::decode(&bytes(&MINIMAL)).unwrap();
        let mut named = Acl::decode(&bytes(&NAMED)).unwrap();
        assert_eq!(minimal.mode(), (0o640, true));
        assert_eq!(named.mode(), (0o761, false));
        named.chmod(0o4504);
        assert_eq!(named.mode(), (0o504, false));
        // Only the mask has moved, not what is behind it.
        assert_eq!(named.0[2].perm, 5);
        assert_eq!(named.0[4].perm, 0);
        let mut minimal = minimal;
        minimal.chmod(0o777);
        assert_eq!(minimal.mode(), (0o777, true));
    }

    #[test]
    fn what_is_inherited() {
        let mut named = Acl::decode(&bytes(&NAMED)).unwrap();
        assert_eq!(named.create(0o666), 0o660);
        assert_eq!((named.0[1].perm, named.0[4].perm), (6, 6));
        let mut named = Acl::decode(&bytes(&NAMED)).unwrap();
        assert_eq!(named.create(0o600), 0o600);
        assert_eq!((named.0[2].perm, named.0[4].perm), (5, 0));
        let mut minimal = Acl::decode(&bytes(&MINIMAL)).unwrap();
        assert_eq!(minimal.create(0o777), 0o640);
        assert_eq!(minimal.create(0o040), 0o040);
    }
}
