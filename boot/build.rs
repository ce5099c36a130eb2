//! Links the image by its own script.

fn main() {
    let script = std::path::Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("link.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        println!("cargo:rustc-link-arg-bins=-T{}", script.display());
        // Pages of 4 KiB, so that the file is not padded to 2 MiB between segments.
        println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
        // The loader loads every section: keep the symbols for backtraces, but not the debugging information of the core library.
        if std::env::var("DEBUG").as_deref() == Ok("false") {
            println!("cargo:rustc-link-arg-bins=--strip-debug");
        }
    }
}
