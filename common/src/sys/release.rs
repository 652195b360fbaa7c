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

//! uname(3): which release of the system this is.  The parent asks, before it
//! mounts.

/// OpenBSD's FUSE device speaks the protocol of Linux since this release.
/// Before, it had messages of its own, and whoever answers those in the wrong
/// way hangs everybody who looks at the mount.
const OPENBSD_MIN: (u32, u32) = (8, 0);

/// Whether this release can mount, or why not.
pub fn check() -> Result<(), String> {
    if !cfg!(target_os = "openbsd") {
        // Linux has had all of it for longer than Rust runs there.
        return Ok(());
    }
    let name = nix::sys::utsname::uname().map_err(|e| format!("uname: {}", e.desc()))?;
    judge(&name.release().to_string_lossy())
}

fn judge(release: &str) -> Result<(), String> {
    let (major, minor) = OPENBSD_MIN;
    match parse(release) {
        Some(found) if found >= OPENBSD_MIN => Ok(()),
        _ => Err(format!(
            "OpenBSD {release}: need {major}.{minor} or newer, for its FUSE protocol"
        )),
    }
}

/// `8.0`: two numbers, be they of more than one digit.
fn parse(release: &str) -> Option<(u32, u32)> {
    let (major, minor) = release.split_once('.')?;
    // Digits alone: parse() would take a sign.
    let number = |s: &str| {
        s.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| s.parse().ok())
    };
    Some((number(major)??, number(minor)??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(parse("8.0"), Some((8, 0)));
        assert_eq!(parse("7.9"), Some((7, 9)));
        assert_eq!(parse("10.12"), Some((10, 12)));
        for bad in [
            "", "8", "8.", ".0", "8.0.1", "8.0-beta", " 8.0", "+8.0", "-8.0", "x.y",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn old_ones_are_refused() {
        for new in ["8.0", "8.1", "9.0", "10.0"] {
            assert_eq!(judge(new), Ok(()));
        }
        for old in ["7.8", "7.9", "6.10", "", "eight"] {
            assert!(judge(old).unwrap_err().contains("need 8.0 or newer"));
        }
    }

    #[cfg(not(target_os = "openbsd"))]
    #[test]
    fn others_are_not_asked() {
        assert_eq!(check(), Ok(()));
    }
}
