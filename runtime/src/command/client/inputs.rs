//! The files that arguments stand for: files, folders, and patterns with `*`, `?` and `[...]`.

use pi_ir::ValueFile;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// What the arguments stand for, each file once and in the order of the arguments.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    /// The files.
    pub(super) files: Vec<PathBuf>,
    /// Files that were named more than once.
    pub(super) repeated: usize,
    /// Arguments that stand for no file, and why.
    pub(super) empty: Vec<(PathBuf, String)>,
    /// The user named one file, and nothing that could have stood for several.
    pub(super) one: bool,
}

impl Inputs {
    /// Expands arguments. A shell has expanded patterns already unless they were quoted, or it does
    /// not do so; a file that exists is meant even if its name looks like a pattern.
    ///
    /// A folder stands for the files in it that have the name of an image or of values, and not for
    /// those in folders inside it: every answer costs a bundle. `DIR/**/*.png` is for those.
    pub(super) fn expand(arguments: &[PathBuf]) -> Inputs {
        let mut inputs = Inputs::default();
        let mut seen = HashSet::new();
        for argument in arguments {
            let found = match (argument.is_dir(), pattern(argument)) {
                (true, _) => folder(argument),
                (false, Some(pattern)) if !argument.exists() => matching(pattern),
                _ => {
                    inputs.one = arguments.len() == 1;
                    Ok(vec![argument.clone()])
                }
            };
            match found {
                Ok(found) => {
                    for file in found {
                        match seen.insert(file.clone()) {
                            true => inputs.files.push(file),
                            false => inputs.repeated += 1,
                        }
                    }
                }
                Err(reason) => inputs.empty.push((argument.clone(), reason)),
            }
        }
        inputs
    }
}

/// The argument as a pattern, if it has a sign of one.
fn pattern(argument: &Path) -> Option<&str> {
    let text = argument.to_str()?;
    text.contains(['*', '?', '[']).then_some(text)
}

/// The files in a folder that may be inputs, by name.
fn folder(path: &Path) -> Result<Vec<PathBuf>, String> {
    let unreadable = |error: std::io::Error| format!("cannot read the folder: {error}");
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if is_input(&file) && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(format!(
            "the folder has no image and no file of values in it; for those in folders inside it \
             write {}/**/*.png",
            path.display()
        )),
        false => Ok(files),
    }
}

fn is_input(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let extension = file.extension().unwrap_or_default().to_string_lossy();
    let extension = extension.to_ascii_lowercase();
    !name.starts_with('.')
        && (pi_image::EXTENSIONS.contains(&extension.as_str()) || ValueFile::has_name(file))
}

/// The files that match a pattern, by name.
fn matching(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let options = glob::MatchOptions {
        require_literal_leading_dot: true,
        require_literal_separator: true,
        ..glob::MatchOptions::new()
    };
    let found = glob::glob_with(pattern, options)
        .map_err(|error| format!("the pattern is wrong: {error}"))?;
    let mut files = Vec::new();
    for file in found {
        let file = file.map_err(|error| format!("cannot look for files: {error}"))?;
        if file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err("no file matches the pattern".into()),
        false => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_folders_and_patterns_stand_for_each_file_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(at("folder/inside")).unwrap();
        for name in [
            "folder/b.PNG",
            "folder/a.jpeg",
            "folder/row.csv",
            "folder/notes.txt",
            "folder/.hidden.png",
            "folder/inside/c.png",
            "we[ird].png",
            "weird.png",
        ] {
            std::fs::write(at(name), "").unwrap();
        }
        let names = |inputs: &Inputs| -> Vec<String> {
            let relative = |file: &PathBuf| file.strip_prefix(directory.path()).unwrap().to_owned();
            let names = inputs.files.iter().map(relative);
            names.map(|name| name.display().to_string()).collect()
        };
        let folder = Inputs::expand(&[at("folder")]);
        assert_eq!(
            names(&folder),
            ["folder/a.jpeg", "folder/b.PNG", "folder/row.csv"]
        );
        assert!(!folder.one);
        let deep = Inputs::expand(&[at("folder/**/*.png")]);
        assert_eq!(names(&deep), ["folder/inside/c.png"]);
        let several = Inputs::expand(&[at("folder/[ab].*"), at("folder"), at("absent.png")]);
        assert_eq!(
            names(&several),
            [
                "folder/a.jpeg",
                "folder/b.PNG",
                "folder/row.csv",
                "absent.png"
            ]
        );
        assert_eq!((several.repeated, several.one), (2, false));
        // A file that has the name of a pattern is that file.
        let weird = Inputs::expand(&[at("we[ird].png")]);
        assert_eq!(names(&weird), ["we[ird].png"]);
        assert!(weird.one);
        let nothing = Inputs::expand(&[at("*.webp"), at("folder/[z"), directory.path().into()]);
        assert_eq!(names(&nothing), ["we[ird].png", "weird.png"]);
        let reasons: Vec<_> = nothing.empty.iter().map(|(_, reason)| reason).collect();
        assert!(reasons[0].contains("no file matches"), "{reasons:?}");
        assert!(reasons[1].contains("pattern is wrong"), "{reasons:?}");
        std::fs::remove_file(at("folder/inside/c.png")).unwrap();
        let empty = Inputs::expand(&[at("folder/inside")]);
        assert!(empty.empty[0].1.contains("**/*.png"), "{empty:?}");
    }
}
