//! The house rules as tests: who may import whom (the table in docs/architecture.md), sizes, names, words, a first comment in every
//! file, links in the docs. A failure names the file and the line.

#![allow(clippy::unwrap_used)] // a failure of a check is a failed test

use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Lines of a source file without its tests.
const FILE_LINES_MAX: usize = 700;
/// Files that may be longer, each with its reason. Keep it short.
const LONG_FILES: [(&str, &str); 0] = [];
/// Names that say nothing.
const BANNED_NAMES: [&str; 5] = ["utils", "util", "common", "helpers", "manager"];
/// Code that is not written here, and why.
const BANNED_CODE: [(&str, &str); 3] = [
    (r"\bunbounded_channel\b", "a mailbox has a limit"),
    (r"\bUnbounded(Sender|Receiver)\b", "a mailbox has a limit"),
    (r"\.unwrap\(\)", "say why it cannot fail, expect(\"...\"), or handle it"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// All files under `dir` with this extension, sorted; build output and virtual environments left out.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && !name.starts_with('.') && name != "node_modules" {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

fn sources() -> Vec<PathBuf> {
    ["proto", "node", "tests"].iter().flat_map(|dir| files(&root().join(dir), "rs")).collect()
}

/// Files (without extension) that hold a module declared as `#[cfg(test)] mod name;`, or with a path before `mod`.
static TEST_MODULES: LazyLock<BTreeSet<PathBuf>> = LazyLock::new(|| {
    let declared = Regex::new(r"#\[cfg\(test\)\]\s*(?:pub(?:\([^)]*\))? )?mod (\w+);").unwrap();
    let placed = Regex::new(r#"#\[cfg\(test\)\]\s*#\[path = "(\w+)\.rs"\]\s*mod \w+;"#).unwrap();
    let mut modules = BTreeSet::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        let is_root = ["mod", "lib", "main"].iter().any(|stem| path.file_stem().is_some_and(|s| s == *stem));
        let folder = if is_root { path.parent().unwrap().to_owned() } else { path.with_extension("") };
        modules.extend(declared.captures_iter(&text).map(|found| folder.join(&found[1])));
        modules.extend(placed.captures_iter(&text).map(|found| path.with_file_name(&found[1])));
    }
    modules
});

fn is_test_file(path: &Path) -> bool {
    let in_tests_folder = path.components().any(|part| part.as_os_str() == "tests");
    in_tests_folder || path.with_extension("").ancestors().any(|module| TEST_MODULES.contains(module))
}

/// The product's code of a file: up to its test module, comments and string contents blanked, line numbers kept.
fn code(text: &str) -> String {
    static TESTS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?m)^#\[cfg\((all\()?test").unwrap());
    let text = match TESTS.find(text) {
        // A `mod tests;` at the end, or an item only for tests: cut at a test module, blank nothing else.
        Some(at) if text[at.start()..].lines().nth(1).is_some_and(|line| line.contains("mod ")) => &text[..at.start()],
        _ => text,
    };
    static NOISE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r##"(?s)//[^\n]*|/\*.*?\*/|\br#".*?"#|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'"##).unwrap());
    NOISE
        .replace_all(text, |found: &regex::Captures<'_>| {
            let kept: String = found[0].chars().filter(|c| *c == '\n').collect();
            if found[0].starts_with("//") { kept } else { format!("\"\"{kept}") }
        })
        .into_owned()
}

fn line_of(text: &str, position: usize) -> usize {
    text[..position].matches('\n').count() + 1
}

/// Room to the rooms it may import; rooms that the table gives `all` are missing.
fn import_table() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let row = Regex::new(r"(?m)^\| `(\w+)` \|.*\| ([^|]*) \|$").unwrap();
    let word = Regex::new(r"[a-z]\w*").unwrap();
    let brackets = Regex::new(r"\([^)]*\)").unwrap();
    row.captures_iter(&text)
        .map(|found| {
            let listed = brackets.replace_all(&found[2], "").into_owned();
            (found[1].to_owned(), word.find_iter(&listed).map(|w| w.as_str().to_owned()).collect())
        })
        .collect()
}

/// Rooms named by `crate::room` or `use crate::{room, room::x}`, each with its position.
fn imports(code: &str) -> Vec<(String, usize)> {
    static SINGLE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\bcrate::(\w+)").unwrap());
    static GROUP: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\bcrate::\{").unwrap());
    let mut found: Vec<(String, usize)> = SINGLE.captures_iter(code).map(|c| (c[1].to_owned(), c.get(0).unwrap().start())).collect();
    for open in GROUP.find_iter(code) {
        let (mut depth, mut at_item) = (1, true);
        let mut name = String::new();
        for c in code[open.end()..].chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            let ends_item = depth == 0 || (depth == 1 && c == ',');
            if depth == 1 && at_item && (c.is_alphanumeric() || c == '_') {
                name.push(c);
            } else if !name.is_empty() {
                found.push((std::mem::take(&mut name), open.start()));
                at_item = false;
            }
            if ends_item {
                at_item = true;
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

fn report(problems: &[String]) {
    assert!(problems.is_empty(), "{} problem(s):\n{}\n", problems.len(), problems.join("\n"));
}

#[test]
fn rooms_import_only_what_the_architecture_allows() {
    let table = import_table();
    assert!(table.len() >= 12, "docs/architecture.md has lost its table of rooms: {:?}", table.keys());
    let source = root().join("node/src");
    let mut problems = Vec::new();
    for path in files(&source, "rs").into_iter().filter(|path| !is_test_file(path)) {
        let inside = path.strip_prefix(&source).unwrap();
        let room = inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned();
        let Some(allowed) = table.get(&room) else { continue };
        let code = code(&fs::read_to_string(&path).unwrap());
        for (import, position) in imports(&code) {
            if import != room && !allowed.contains(&import) {
                problems.push(format!("{}:{}: `{room}` may not import `{import}`", shown(&path), line_of(&code, position)));
            }
        }
    }
    report(&problems);
}

#[test]
fn every_room_stands_in_the_table_or_beside_the_composition_root() {
    let table = import_table();
    let beside = ["node", "config", "cli", "launcher", "bench", "telemetry"];
    let declared = fs::read_to_string(root().join("node/src/lib.rs")).unwrap();
    let module = Regex::new(r"(?m)^pub mod (\w+);").unwrap();
    let missing: Vec<String> = module
        .captures_iter(&declared)
        .filter(|found| !table.contains_key(&found[1]) && !beside.contains(&&found[1]))
        .map(|found| format!("node/src/lib.rs: room `{}` is not in docs/architecture.md", &found[1]))
        .collect();
    report(&missing);
}

#[test]
fn only_consensus_names_openraft_and_only_the_state_store_names_sled() {
    let mut problems = Vec::new();
    for (library, home) in [("openraft", "node/src/consensus"), ("sled", "node/src/store")] {
        let named = Regex::new(&format!(r"\b{library}::")).unwrap();
        for path in files(&root().join("node/src"), "rs").into_iter().filter(|path| !shown(path).starts_with(home)) {
            let code = code(&fs::read_to_string(&path).unwrap());
            problems.extend(named.find(&code).map(|at| format!("{}:{}: {library} is named", shown(&path), line_of(&code, at.start()))));
        }
    }
    report(&problems);
}

#[test]
fn every_file_opens_with_what_it_is() {
    let mut problems = Vec::new();
    let node = root().join("node/src");
    for path in sources().into_iter().filter(|path| !(path.starts_with(&node) && is_test_file(path))) {
        let text = fs::read_to_string(&path).unwrap();
        if !text.starts_with("//!") {
            problems.push(format!("{}:1: the file does not open with a `//!` line", shown(&path)));
        }
    }
    report(&problems);
}

#[test]
fn files_stay_readable() {
    let mut problems = Vec::new();
    for path in sources().into_iter().filter(|path| !is_test_file(path)) {
        let lines = code(&fs::read_to_string(&path).unwrap()).lines().count();
        let is_allowed = LONG_FILES.iter().any(|(name, _)| shown(&path) == *name);
        if lines > FILE_LINES_MAX && !is_allowed {
            problems.push(format!("{}: {lines} lines without tests, at most {FILE_LINES_MAX}: split it", shown(&path)));
        }
    }
    report(&problems);
}

#[test]
fn names_say_something() {
    let problems: Vec<String> = sources()
        .iter()
        .filter(|path| path.iter().any(|part| BANNED_NAMES.contains(&part.to_string_lossy().trim_end_matches(".rs"))))
        .map(|path| format!("{}: a file is a noun", shown(path)))
        .collect();
    report(&problems);
}

#[test]
fn code_keeps_to_the_bans() {
    let bans: Vec<(Regex, &str)> = BANNED_CODE.iter().map(|(pattern, why)| (Regex::new(pattern).unwrap(), *why)).collect();
    let mut problems = Vec::new();
    for path in files(&root().join("node/src"), "rs").into_iter().filter(|path| !is_test_file(path)) {
        let code = code(&fs::read_to_string(&path).unwrap());
        for (ban, why) in &bans {
            problems
                .extend(ban.find_iter(&code).map(|at| format!("{}:{}: {}: {why}", shown(&path), line_of(&code, at.start()), at.as_str())));
        }
    }
    report(&problems);
}

/// Anchors of a Markdown page as they are made from its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim().to_lowercase());
    headings
        .map(|h| h.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_').collect::<String>().replace(' ', "-"))
        .collect()
}

#[test]
fn links_in_the_docs_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut problems = Vec::new();
    for path in files(&root(), "md") {
        let text = fs::read_to_string(&path).unwrap();
        for found in link.captures_iter(&text).filter(|found| !found[1].contains("://") && !found[1].starts_with("mailto:")) {
            let (file, anchor) = found[1].split_once('#').unwrap_or((&found[1], ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let at = format!("{}:{}", shown(&path), line_of(&text, found.get(0).unwrap().start()));
            if !target.exists() {
                problems.push(format!("{at}: {} does not exist", &found[1]));
            } else if !anchor.is_empty() && !anchors(&fs::read_to_string(&target).unwrap()).contains(anchor) {
                problems.push(format!("{at}: {} has no such heading", &found[1]));
            }
        }
    }
    report(&problems);
}

#[test]
fn source_files_that_the_docs_name_exist() {
    let named = Regex::new(r"`((?:node|proto|tests|deploy|docs)/[\w./-]+\.\w+)`").unwrap();
    let mut problems = Vec::new();
    for path in files(&root(), "md") {
        let text = fs::read_to_string(&path).unwrap();
        for found in named.captures_iter(&text).filter(|found| !root().join(&found[1]).exists()) {
            problems.push(format!("{}:{}: {} does not exist", shown(&path), line_of(&text, found.get(0).unwrap().start()), &found[1]));
        }
    }
    report(&problems);
}

#[test]
fn the_checks_see_what_they_look_for() {
    let text = "use crate::{edge, model::{self, limits}};\nfn f() { crate::wire::x() } // crate::store\nlet s = \"crate::peer\";\n";
    let rooms: BTreeSet<String> = imports(&code(text)).into_iter().map(|(room, _)| room).collect();
    assert_eq!(rooms.into_iter().collect::<Vec<_>>(), ["edge", "model", "wire"]);
    assert_eq!(code("a.unwrap() // .unwrap()\n#[cfg(test)]\nmod tests { b.unwrap() }").matches("unwrap").count(), 1);
    assert!(import_table()["edge"].contains("machine"));
    assert!(anchors("# Killing a node\n").contains("killing-a-node"));
}
