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

//! The names and limits of extended attributes, as Linux has them.  Pure data;
//! does no I/O.

use crate::fs::FsError;
use serde::{Deserialize, Serialize};

/// Longest name, in bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// Longest value.
pub const XATTR_SIZE_MAX: usize = 64 << 10;
/// Most bytes of all names of an inode, each with a NUL behind it.
pub const XATTR_LIST_MAX: usize = 64 << 10;
/// Most bytes of all names and values of an inode.
pub const XATTRS_MAX: u32 = 1 << 20;
/// Longest ACL: kernels ask for them with a buffer of one page.
pub const ACL_SIZE_MAX: usize = 4096;

pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";
/// Privileges that a program file gives; lost when somebody changes it.
pub const CAPABILITY: &[u8] = b"security.capability";

/// What a name is of; the kernel judges who may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    User,
    Trusted,
    Security,
    AclAccess,
    AclDefault,
}

/// Whether an attribute must or must not be there when it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrHow {
    Any,
    Create,
    Replace,
}

/// The namespace of a name that can be one.
pub fn namespace(name: &[u8]) -> Result<Namespace, FsError> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(FsError::Range);
    }
    if name.contains(&0) {
        return Err(FsError::Invalid);
    }
    match name {
        ACL_ACCESS => return Ok(Namespace::AclAccess),
        ACL_DEFAULT => return Ok(Namespace::AclDefault),
        _ => {}
    }
    for (prefix, namespace) in [
        (&b"user."[..], Namespace::User),
        (b"trusted.", Namespace::Trusted),
        (b"security.", Namespace::Security),
    ] {
        match name.strip_prefix(prefix) {
            Some(b"") => return Err(FsError::Invalid),
            Some(_) => return Ok(namespace),
            None => {}
        }
    }
    Err(FsError::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces() {
        let long = [b"user.".as_slice(), &[b'x'; 250]].concat();
        let longer = [b"user.".as_slice(), &[b'x'; 251]].concat();
        for (name, want) in [
            (&b"user.a"[..], Ok(Namespace::User)),
            (&long, Ok(Namespace::User)),
            (b"trusted.a.b", Ok(Namespace::Trusted)),
            (CAPABILITY, Ok(Namespace::Security)),
            (ACL_ACCESS, Ok(Namespace::AclAccess)),
            (ACL_DEFAULT, Ok(Namespace::AclDefault)),
            (&longer, Err(FsError::Range)),
            (b"", Err(FsError::Range)),
            (b"user.", Err(FsError::Invalid)),
            (b"user.a\0b", Err(FsError::Invalid)),
            (b"user", Err(FsError::Unsupported)),
            (b"system.posix_acl_accessx", Err(FsError::Unsupported)),
            (b"system.nfs4_acl", Err(FsError::Unsupported)),
        ] {
            assert_eq!(namespace(name), want, "{name:?}");
        }
    }
}
