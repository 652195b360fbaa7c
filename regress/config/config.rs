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

//! dfsd.conf(5) through the built dfsd: `dfsd -nv` on each dfsd.conf.N.in here
//! prints what dfsd.conf.N.ok holds, or complains as dfsd.conf.N.err says; what
//! it prints parses back; the shipped example and those of the man page work.

#![forbid(unsafe_code)]

use common::conf::DEFAULTS;
use std::fs;
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A directory of one test, gone with it.
struct Dir(PathBuf);

impl Dir {
    fn new(test: &str) -> Dir {
        let name = format!("config-{test}-{}", std::process::id());
        let dir = Dir(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
        fs::create_dir(&dir.0).expect("mkdir");
        dir
    }

    /// The mode is that of the sources only if umask(2) was kind.
    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        path
    }

    fn dfsd<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        Command::new(env!("CARGO_BIN_EXE_dfsd"))
            .args(args.into_iter().map(|arg| arg.as_ref().to_string()))
            .current_dir(&self.0)
            .output()
            .expect("run dfsd")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What -nv prints for a good file; it must parse back to the same.
fn prints(dir: &Dir, name: &str, args: &[&str]) -> String {
    let output = dir.dfsd(["-n", "-v", "-f", name].iter().chain(args));
    assert!(output.status.success(), "{name}: {}", stderr(&output));
    let printed = stdout(&output);
    dir.put("printed", &printed);
    let again = dir.dfsd(["-n", "-v", "-f", "printed"]);
    assert_eq!(stdout(&again), printed, "{name}: {}", stderr(&again));
    printed
}

/// What -n says of a bad file.
fn complains(dir: &Dir, name: &str, args: &[&str]) -> String {
    let output = dir.dfsd(["-n", "-v", "-f", name].iter().chain(args));
    assert_eq!(output.status.code(), Some(1), "{name}: {}", stderr(&output));
    assert_eq!(stdout(&output), "", "{name}");
    stderr(&output)
}

/// A good configuration of three nodes with these lines after it.
fn good(lines: &str) -> String {
    let peers: String = (1..=3)
        .map(|i| format!("peer 192.0.2.{i} {{ id {i} }}\n"))
        .collect();
    format!("cluster prod\nnode 1\n{peers}{lines}")
}

#[test]
fn cases() {
    let dir = Dir::new("cases");
    let here = Path::new(ROOT).join("regress/config");
    let mut cases = Vec::new();
    for entry in fs::read_dir(&here).expect("readdir") {
        let entry = entry.expect("readdir");
        let name = entry.file_name().into_string().expect("file name");
        if name.ends_with(".in") || name.ends_with(".conf") {
            dir.put(&name, fs::read(entry.path()).expect("read"));
        }
        cases.extend(name.strip_suffix(".in").map(str::to_string));
    }
    assert!(cases.len() > 20);
    for case in cases {
        check_case(&dir, &here.join(&case), &format!("{case}.in"));
    }
}

fn check_case(dir: &Dir, case: &Path, name: &str) {
    let file = |suffix| PathBuf::from(format!("{}.{suffix}", case.display()));
    let text = read(file("in"));
    let args = text.lines().find_map(|l| l.strip_prefix("# args: "));
    let args: Vec<&str> = args.unwrap_or_default().split_whitespace().collect();
    if file("err").exists() {
        assert_eq!(complains(dir, name, &args), read(file("err")), "{name}");
    } else {
        assert_eq!(prints(dir, name, &args), read(file("ok")), "{name}");
    }
}

#[test]
fn shipped_example() {
    let dir = Dir::new("example");
    let text = read(Path::new(ROOT).join("etc/examples/dfsd.conf"));
    dir.put("dfsd.conf", &text);
    prints(&dir, "dfsd.conf", &[]);
    // What is commented out works too, but for the prose.
    let is_option = |l: &str| l.starts_with("#\t") || l.starts_with('#') && !l.starts_with("# ");
    let lines = text.lines().map(|l| if is_option(l) { &l[1..] } else { l });
    dir.put("dfsd.conf", lines.collect::<Vec<_>>().join("\n"));
    let printed = prints(&dir, "dfsd.conf", &[]);
    assert_eq!(printed.matches("mount ").count(), 3);
}

/// The lines between .Bd and .Ed, as the reader sees them.
fn man_examples(page: &str) -> Vec<String> {
    let blocks = page.split("\n.Bd ").skip(1);
    let blocks = blocks.filter_map(|b| b.split_once('\n')?.1.split_once("\n.Ed"));
    blocks
        .map(|(text, _)| text.replace("\\&", "").replace("\\e", "\\") + "\n")
        .collect()
}

#[test]
fn man_page_examples() {
    let dir = Dir::new("man");
    let page = read(Path::new(ROOT).join("man/dfsd.conf.5"));
    let examples = man_examples(&page);
    assert!(examples.len() >= 3);
    for (i, example) in examples.iter().enumerate() {
        let name = format!("man.{i}");
        dir.put(&name, example);
        prints(&dir, &name, &["-D", "id=2"]);
    }
    assert!(prints(&dir, "man.0", &["-D", "id=2"]).contains("\nnode 2\n"));
}

/// What the page says after "The default is" for one statement or option.
fn man_default(page: &str, name: &str) -> String {
    let item = page.split("\n.It Ic ").skip(1).find(|item| {
        let rest = item.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([' ', '\n']))
    });
    let item = item.unwrap_or_else(|| panic!("{name} is not in the page"));
    if item.contains("There is no default.") {
        return "none".into();
    }
    let (_, default) = item
        .split_once("The default is")
        .unwrap_or_else(|| panic!("{name}"));
    let words = default
        .split_whitespace()
        .filter(|w| !matches!(*w, ".Cm" | ".Pa" | "."));
    let word = words
        .clone()
        .next()
        .unwrap_or_default()
        .trim_end_matches(['.', ':', ',']);
    word.into()
}

#[test]
fn man_page_defaults() {
    let dir = Dir::new("defaults");
    let page = read(Path::new(ROOT).join("man/dfsd.conf.5"));
    dir.put("dfsd.conf", good("mount /mnt/a\n"));
    let printed = prints(&dir, "dfsd.conf", &[]);
    for name in ["data", "lock lease", "log limit", "reserve", "socket"] {
        let default = man_default(&page, name);
        let line = printed
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        assert_eq!(
            line.map(|l| l.trim_matches('"')),
            Some(default.as_str()),
            "{name}"
        );
    }
    for name in [
        "auto",
        "noatime",
        "nodev",
        "noexec",
        "nosuid",
        "read only",
        "subtree",
        "timeout",
    ] {
        let default = man_default(&page, name);
        let line = printed
            .lines()
            .find_map(|l| l.trim().strip_prefix(name)?.strip_prefix(' '));
        assert_eq!(
            line.map(|l| l.trim_matches('"')),
            Some(default.as_str()),
            "{name}"
        );
    }
    for name in ["cluster", "node", "id", "descr"] {
        assert_eq!(man_default(&page, name), "none", "{name}");
    }
    assert!(page.contains(&format!("The default is port {}.", DEFAULTS.port)));
    assert!(page.contains(&format!(".It Pa {}\n", common::conf::CONF_FILE)));
}

#[test]
fn configtest_says_ok() {
    let dir = Dir::new("ok");
    dir.put("dfsd.conf", good(""));
    let output = dir.dfsd(["-n", "-f", "dfsd.conf"]);
    assert!(output.status.success());
    assert_eq!(stdout(&output), "");
    assert_eq!(stderr(&output), "configuration OK\n");
}

#[test]
fn verbose_warns() {
    let dir = Dir::new("warns");
    dir.put("dfsd.conf", good("peer 192.0.2.4 { id 4 }\n"));
    let even = "warning: 4 voters survive the loss of no more nodes than 3\n";
    assert!(stderr(&dir.dfsd(["-n", "-v", "-f", "dfsd.conf"])).contains(even));
    assert!(!stderr(&dir.dfsd(["-n", "-f", "dfsd.conf"])).contains("warning"));

    dir.put(
        "dfsd.conf",
        good("peer 127.0.1.1 { id 4 }\npeer 192.0.2.5 { id 5 }\n"),
    );
    let local = "warning: peer 4: other nodes cannot reach 127.0.1.1\n";
    assert!(stderr(&dir.dfsd(["-n", "-v", "-f", "dfsd.conf"])).contains(local));

    dir.put("dfsd.conf", "cluster a\nnode 1\npeer ::1 { id 1 }\n");
    assert!(!stderr(&dir.dfsd(["-n", "-v", "-f", "dfsd.conf"])).contains("warning"));
}

#[test]
fn host_names() {
    let dir = Dir::new("hosts");
    dir.put("dfsd.conf", "cluster a\nnode 1\npeer localhost { id 1 }\n");
    let printed = prints(&dir, "dfsd.conf", &[]);
    let first = ["127.0.0.1", "::1"].map(|ip| format!("\npeer {ip} port 7400 {{ id 1 }}\n"));
    assert!(first.iter().any(|line| printed.contains(line)), "{printed}");

    // Too long a label for any resolver to ask for.
    let host = "x".repeat(64) + ".invalid";
    dir.put("dfsd.conf", good(&format!("peer {host} {{ id 4 }}\nfoo\n")));
    let errors = complains(&dir, "dfsd.conf", &[]);
    assert!(
        errors.starts_with(&format!("dfsd.conf:6: peer {host}: ")),
        "{errors}"
    );
    assert!(
        errors.ends_with("\ndfsd.conf:7: unknown statement \"foo\"\n"),
        "{errors}"
    );
}

#[test]
fn unreadable_files() {
    let dir = Dir::new("unreadable");
    let errors = complains(&dir, "none.conf", &[]);
    assert_eq!(errors, "none.conf: No such file or directory\n");
    let errors = complains(&dir, ".", &[]);
    assert_eq!(errors, ".: Is a directory\n");
    dir.put("latin1.conf", b"cluster \"\xfc\"\n");
    assert_eq!(
        complains(&dir, "latin1.conf", &[]),
        "latin1.conf: not UTF-8\n"
    );
}

#[test]
fn writable_by_others() {
    let dir = Dir::new("modes");
    dir.put("dfsd.conf", good("include \"more.conf\"\n"));
    for mode in [0o600, 0o400, 0o644, 0o660, 0o602, 0o620, 0o666] {
        for name in ["dfsd.conf", "more.conf"] {
            let more = dir.put("more.conf", "");
            let main = dir.put("dfsd.conf", good("include \"more.conf\"\n"));
            let changed = if name == "dfsd.conf" { main } else { more };
            fs::set_permissions(changed, fs::Permissions::from_mode(mode)).expect("chmod");
            let output = dir.dfsd(["-n", "-f", "dfsd.conf"]);
            assert_eq!(
                output.status.success(),
                mode & 0o022 == 0,
                "{name} {mode:o}"
            );
            let at = if name == "dfsd.conf" {
                name
            } else {
                "dfsd.conf:6: include more.conf"
            };
            if mode & 0o022 != 0 {
                assert_eq!(stderr(&output), format!("{at}: group or world writable\n"));
            }
        }
    }
}

#[test]
fn owned_by_another() {
    let dir = Dir::new("owner");
    let path = dir.put("dfsd.conf", good(""));
    if fs::metadata(&path).expect("stat").uid() != 0 {
        println!("SKIPPED: needs root to give a file away");
        return;
    }
    chown(&path, Some(65533), None).expect("chown");
    let errors = complains(&dir, "dfsd.conf", &[]);
    assert_eq!(errors, "dfsd.conf: owner not root\n");
}

/// Whatever is cut off or put in, dfsd answers with 0, or with 1 and lines
/// that name the file.
#[test]
fn damaged_files() {
    let dir = Dir::new("damaged");
    let whole =
        "m = \"/mnt\"\ncluster \"a\\\"\"\nnode 1 # x\npeer ::1 port 1 {\n\tid 1\n}\nlog \\\n\
                 limit 4G\nmount $m { read only yes }\n";
    let mut damaged: Vec<String> = (0..whole.len()).map(|i| whole[..i].to_string()).collect();
    for with in [
        "{", "}", "=", "\"", "'", "$", "$m", "\\", "\n", "#", "\0", "9", "\u{fc}",
    ] {
        damaged.extend((0..whole.len()).map(|i| format!("{}{with}{}", &whole[..i], &whole[i..])));
    }
    for text in damaged {
        dir.put("dfsd.conf", &text);
        let output = dir.dfsd(["-n", "-f", "dfsd.conf"]);
        let errors = stderr(&output);
        match output.status.code() {
            Some(0) => assert_eq!(errors, "configuration OK\n", "{text:?}"),
            Some(1) => {
                let named = errors.lines().all(|l| l.starts_with("dfsd.conf:"));
                assert!(named && !errors.is_empty(), "{text:?}: {errors}");
            }
            _ => panic!("{text:?}: {:?}: {errors}", output.status),
        }
    }
}
