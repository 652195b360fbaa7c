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

//! Log lines as every daemon of the family writes them: to stderr without
//! decoration when in the foreground (`-d`), otherwise to syslog(3), facility
//! daemon, with the pid.  Runs in all processes and from any thread; it never
//! fails and never blocks on anything but the log itself.
//!
//! | macro                   | level | when                                   |
//! | ----------------------- | ----- | -------------------------------------- |
//! | `fatal!`, `fatalx!`     | crit  | the process cannot go on; exits 1      |
//! | `log_warn!`, `log_warnx!` | err | with and without an error as reason    |
//! | `log_info!`             | info  | a change of state the operator wants   |
//! | `log_debug!`            | debug | only when verbose                      |

#![forbid(unsafe_code)]

use crate::sys::syslog::{self, Priority};
use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{OnceLock, RwLock};

static DEBUG: AtomicBool = AtomicBool::new(true);
static VERBOSE: AtomicBool = AtomicBool::new(false);
static IDENT: OnceLock<&'static str> = OnceLock::new();
static PROCNAME: RwLock<Option<String>> = RwLock::new(None);

/// Chooses stderr (`debug`) or syslog.  A daemon calls it twice: with `debug`
/// while it reads its arguments, and again before it detaches.
pub fn log_init(ident: &'static str, debug: bool, verbose: bool) {
    let _ = IDENT.set(ident);
    if !debug {
        syslog::open(ident);
    }
    DEBUG.store(debug, Ordering::Relaxed);
    log_setverbose(verbose);
}

pub fn log_setverbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

pub fn log_verbose() -> bool {
    VERBOSE.load(Ordering::Relaxed)
}

/// What this process is, for `fatal in <process>: ...`, when one program runs
/// as several processes (`/mnt/home`, `raft engine`).
pub fn log_procname(name: String) {
    if let Ok(mut procname) = PROCNAME.write() {
        *procname = Some(name);
    }
}

/// Replaces control characters, so that one call is one line whatever a peer
/// or a file name put into it.
fn one_line(line: String) -> String {
    if line.bytes().all(|b| b >= b' ' && b != 0x7f) {
        return line;
    }
    let mut out = String::with_capacity(line.len() + 8);
    for c in line.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// An error's text without the number that std appends, as strerror(3) has it.
pub fn reason(err: &dyn fmt::Display) -> String {
    let mut text = err.to_string();
    if let Some((before, after)) = text.rsplit_once(" (os error ") {
        let number = after.strip_suffix(')').unwrap_or("-");
        if number.bytes().all(|b| b.is_ascii_digit()) {
            text.truncate(before.len());
        }
    }
    text
}

fn logit(priority: Priority, args: fmt::Arguments<'_>) {
    let mut line = one_line(args.to_string());
    if DEBUG.load(Ordering::Relaxed) {
        line.push('\n');
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    } else {
        syslog::write(priority, &line);
    }
}

fn fatal_line(args: fmt::Arguments<'_>) -> ! {
    let procname = PROCNAME.read().ok().and_then(|name| name.clone());
    match procname {
        Some(name) => logit(Priority::Crit, format_args!("fatal in {name}: {args}")),
        None => {
            let ident = IDENT.get().copied().unwrap_or("dfsd");
            logit(Priority::Crit, format_args!("{ident}: {args}"));
        }
    }
    std::process::exit(1)
}

#[doc(hidden)]
pub fn fatal(err: &dyn fmt::Display, args: fmt::Arguments<'_>) -> ! {
    fatal_line(format_args!("{args}: {}", reason(err)))
}

#[doc(hidden)]
pub fn fatalx(args: fmt::Arguments<'_>) -> ! {
    fatal_line(args)
}

#[doc(hidden)]
pub fn warn(err: &dyn fmt::Display, args: fmt::Arguments<'_>) {
    logit(Priority::Err, format_args!("{args}: {}", reason(err)))
}

#[doc(hidden)]
pub fn warnx(args: fmt::Arguments<'_>) {
    logit(Priority::Err, args)
}

#[doc(hidden)]
pub fn info(args: fmt::Arguments<'_>) {
    logit(Priority::Info, args)
}

#[doc(hidden)]
pub fn debug(args: fmt::Arguments<'_>) {
    logit(Priority::Debug, args)
}

/// `fatal!(err, "what")`: logs `what: err` and exits 1.
#[macro_export]
macro_rules! fatal {
    ($err:expr, $($arg:tt)+) => {
        $crate::log::fatal(&$err, ::core::format_args!($($arg)+))
    };
}

/// `fatalx!("what: reason")`: logs it and exits 1.
#[macro_export]
macro_rules! fatalx {
    ($($arg:tt)+) => { $crate::log::fatalx(::core::format_args!($($arg)+)) };
}

/// `log_warn!(err, "what")`: logs `what: err`.
#[macro_export]
macro_rules! log_warn {
    ($err:expr, $($arg:tt)+) => {
        $crate::log::warn(&$err, ::core::format_args!($($arg)+))
    };
}

#[macro_export]
macro_rules! log_warnx {
    ($($arg:tt)+) => { $crate::log::warnx(::core::format_args!($($arg)+)) };
}

#[macro_export]
macro_rules! log_info {
    ($($arg:tt)+) => { $crate::log::info(::core::format_args!($($arg)+)) };
}

/// Evaluates its arguments only when verbose.
#[macro_export]
macro_rules! log_debug {
    ($($arg:tt)+) => {
        if $crate::log::log_verbose() {
            $crate::log::debug(::core::format_args!($($arg)+))
        }
    };
}

#[cfg(test)]
mod tests {
    use super::{one_line, reason};

    #[test]
    fn reasons_are_as_strerror_says() {
        let err = std::io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(reason(&err), "Permission denied");
        assert_eq!(reason(&"x (os error y)"), "x (os error y)");
    }

    #[test]
    fn control_characters_do_not_break_lines() {
        assert_eq!(one_line("a b".into()), "a b");
        assert_eq!(one_line("a\nb\0\u{1b}[1m".into()), "a\\nb\\u{0}\\u{1b}[1m");
    }
}
