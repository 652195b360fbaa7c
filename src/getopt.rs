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

//! getopt(3) for dfsd, dfsctl and mount_dfs.  It only sorts what the command
//! line says; what an option means is the caller's to know.

#![forbid(unsafe_code)]

use std::ffi::OsString;

/// The options with their values, in order, and the operands behind them.
pub struct Args {
    pub options: Vec<(char, String)>,
    pub operands: Vec<String>,
}

/// `spec` is as for getopt(3): a colon after each letter that takes a value.
/// None is for an option that is not there, or its value.
pub fn getopt(args: impl IntoIterator<Item = OsString>, spec: &str) -> Option<Args> {
    let mut args = args.into_iter().map(OsString::into_string).peekable();
    let mut options = Vec::new();
    while let Some(arg) =
        args.next_if(|arg| matches!(arg, Ok(arg) if arg.len() > 1 && arg.starts_with('-')))
    {
        let arg = arg.ok()?;
        if arg == "--" {
            break;
        }
        let mut letters = arg.chars().skip(1);
        while let Some(letter) = letters.next() {
            let mut value = String::new();
            if takes_value(letter, spec)? {
                value = letters.by_ref().collect();
                if value.is_empty() {
                    value = args.next()?.ok()?;
                }
            }
            options.push((letter, value));
        }
    }
    let operands = args.collect::<Result<_, _>>().ok()?;
    Some(Args { options, operands })
}

/// None when there is no such option.
fn takes_value(letter: char, spec: &str) -> Option<bool> {
    let (_, rest) = spec.split_once(letter).filter(|_| letter != ':')?;
    Some(rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(args: &[&str]) -> Option<(String, Vec<String>)> {
        let args = getopt(args.iter().map(OsString::from), "df:nv")?;
        let options = args.options.iter().map(|(c, v)| format!("{c}{v} "));
        Some((options.collect(), args.operands))
    }

    #[test]
    fn options() {
        let operands = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        assert_eq!(get(&[]), Some(("".into(), vec![])));
        assert_eq!(get(&["-nv"]), Some(("n v ".into(), vec![])));
        assert_eq!(get(&["-n", "-fx"]), Some(("n fx ".into(), vec![])));
        assert_eq!(
            get(&["-nf", "x", "a"]),
            Some(("n fx ".into(), operands(&["a"])))
        );
        assert_eq!(
            get(&["-d", "a", "-n"]),
            Some(("d ".into(), operands(&["a", "-n"])))
        );
        assert_eq!(
            get(&["-d", "--", "-n"]),
            Some(("d ".into(), operands(&["-n"])))
        );
        assert_eq!(get(&["-"]), Some(("".into(), operands(&["-"]))));
        for bad in [&["-x"][..], &["-f"], &["-:"], &["-n-"]] {
            assert_eq!(get(bad), None);
        }
    }
}
