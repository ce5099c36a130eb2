//! Where things are in this workspace, and building its freestanding programs.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::tools;

/// The target of everything that runs without an operating system.
pub const BARE_TARGET: &str = "x86_64-unknown-none";

/// The target of programs for whatever Linux there is.
pub const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";

/// The packages that are built for [`BARE_TARGET`].
pub const BARE_PACKAGES: [&str; 2] = ["bulkhead", "guests"];

#[derive(Clone, Debug)]
pub struct Workspace {
    pub root: PathBuf,
    /// What xtask keeps between runs: downloads and generated images.
    pub cache: PathBuf,
    /// `--hypervisor`: take this file, build none.
    prebuilt: Option<PathBuf>,
}

impl Workspace {
    pub fn find(prebuilt: Option<PathBuf>) -> Result<Self> {
        if let Some(path) = &prebuilt {
            ensure!(path.is_file(), "there is no hypervisor {}", path.display());
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?.to_owned();
        let output = cargo(&root)
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        ensure!(output.status.success(), "cargo metadata failed");
        let metadata: Value = serde_json::from_slice(&output.stdout)?;
        let target = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
        Ok(Self { root, cache: Path::new(target).join("xtask"), prebuilt })
    }

    /// A cargo command in the workspace.
    pub fn cargo(&self) -> Command {
        cargo(&self.root)
    }

    /// A cargo command that builds for the bare target: flags meant for the host must not replace those in `.cargo/config.toml`.
    pub fn cargo_bare(&self) -> Command {
        let mut command = self.cargo();
        command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        command
    }

    /// The hypervisor's ELF file, built unless one was given.
    pub fn hypervisor(&self) -> Result<PathBuf> {
        match &self.prebuilt {
            Some(path) => Ok(path.clone()),
            None => self.build("bulkhead", "release"),
        }
    }

    /// The same with line numbers.
    pub fn hypervisor_with_lines(&self) -> Result<PathBuf> {
        match &self.prebuilt {
            Some(path) => Ok(path.clone()),
            None => self.build("bulkhead", "trace"),
        }
    }

    /// The test guest's ELF file, built.
    pub fn test_guest(&self) -> Result<PathBuf> {
        self.build("guests", "release")
    }

    /// The user program that stands for KVM in the benchmark: an ELF file that needs no libraries, built.
    pub fn kvm_peer(&self) -> Result<PathBuf> {
        const TARGET: &str = "x86_64-unknown-linux-gnu";
        let mut command = self.cargo_bare();
        command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
        command.args(["build", "--release", "--package", "kvm-peer", "--target", TARGET]);
        Self::built("kvm-peer", command)
    }

    /// The program `bulkhead-check`, linked statically, built.
    pub fn check_program(&self) -> Result<PathBuf> {
        tools::need_target(STATIC_TARGET)?;
        self.build_with("bulkhead-check", STATIC_TARGET, "small")
    }

    /// Where results for the user go that are not named on the command line: beside the builds.
    pub fn output_folder(&self, name: &str) -> PathBuf {
        self.cache.with_file_name(name)
    }

    /// Builds the freestanding program of `package`, optimised. Returns its ELF file.
    fn build(&self, package: &str, profile: &str) -> Result<PathBuf> {
        tools::need_target(BARE_TARGET)?;
        self.build_with(package, BARE_TARGET, profile)
    }

    fn build_with(&self, package: &str, target: &str, profile: &str) -> Result<PathBuf> {
        let mut command = self.cargo_bare();
        command.args(["build", "--profile", profile, "--package", package, "--target", target]);
        Self::built(package, command)
    }

    /// Runs a command that builds `package`. Returns its ELF file.
    fn built(package: &str, mut command: Command) -> Result<PathBuf> {
        command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
        let output = command.output().context("cannot run cargo")?;
        ensure!(output.status.success(), "{package} does not build");
        match executable(&String::from_utf8_lossy(&output.stdout)) {
            Some(path) => Ok(path),
            None => bail!("{package} built, but made no executable"),
        }
    }
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    // Set by `cargo run` for this process; they would make each build differ from one started by hand.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
        command.env_remove(name);
    }
    command
}

/// The program in cargo's messages, which are one JSON object a line.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|m| m["reason"] == "compiler-artifact")
        .filter_map(|m| m["executable"].as_str().map(PathBuf::from))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_in_cargos_messages() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"name":"x86defs"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"bulkhead"},"executable":"/t/bulkhead"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/bulkhead")));
        assert_eq!(executable(""), None);
    }
}
