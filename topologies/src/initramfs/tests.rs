use super::*;

fn manifest(name: &str, key: &str) -> Manifest {
    Manifest {
        name: name.to_owned(),
        key: key.to_owned(),
        recipe: "r".to_owned(),
        kernel: "6.1.0".to_owned(),
        packages: BTreeMap::from([("busybox-static".to_owned(), "1".to_owned())]),
    }
}

const RECIPE: Recipe<'static> = Recipe {
    name: "test",
    kernel: "linux-image-test",
    modules: None,
    tools: &[],
    load: &["virtio_pci"],
    available: &[],
    links: &[],
    files: &[("init", 0o755, "#!/bin/sh\n")],
};

/// Publish an image with `key`, as a build does.
fn publish(cache: &Cache, key: &str) -> Image {
    let _lock = cache.lock(&|_| ()).unwrap();
    let work = cache.work_folder().unwrap();
    let finished = work.path().join("image");
    fs::create_dir(&finished).unwrap();
    fs::write(finished.join("vmlinuz"), "kernel").unwrap();
    cache.publish(&finished, manifest("test", key)).unwrap()
}

#[test]
fn an_image_is_found_again_by_name_and_nothing_unfinished_is() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::in_folder(folder.path());
    assert_eq!(cache.all_images().unwrap(), []);
    let image = publish(&cache, "aaaa");
    fs::create_dir(folder.path().join("images/test-broken")).unwrap();
    fs::write(folder.path().join("images/test-broken/image.json"), "{").unwrap();
    let _unfinished = cache.work_folder().unwrap();
    assert_eq!(cache.images("test").unwrap(), std::slice::from_ref(&image));
    assert_eq!(cache.images("other").unwrap(), []);
    assert_eq!(fs::read_to_string(image.kernel()).unwrap(), "kernel");
    assert_eq!(image.folder, folder.path().join("images/test-aaaa"));
}

#[test]
fn a_folder_left_without_a_manifest_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::in_folder(folder.path());
    fs::create_dir_all(folder.path().join("images/test-bbbb/old")).unwrap();
    let image = publish(&cache, "bbbb");
    assert!(!image.folder.join("old").exists());
    assert_eq!(cache.images("test").unwrap(), [image]);
}

#[test]
fn builders_at_once_build_one_after_another() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::in_folder(folder.path());
    let inside = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for i in 0..8 {
            let (cache, inside) = (&cache, &inside);
            scope.spawn(move || {
                let lock = cache.lock(&|_| ()).unwrap();
                assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                fs::write(folder_of(cache).join(format!("{i}")), "").unwrap();
                inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                drop(lock);
            });
        }
    });
}

fn folder_of(cache: &Cache) -> PathBuf {
    cache.packages_folder().unwrap()
}

#[test]
fn the_digest_changes_with_recipe_and_agent() {
    let digest = |recipe: Recipe<'_>, agent: &[u8]| recipe.digest(agent).unwrap();
    let usual = digest(RECIPE, b"agent");
    assert_eq!(usual, digest(RECIPE, b"agent"));
    assert_ne!(usual, digest(RECIPE, b"other agent"));
    assert_ne!(usual, digest(Recipe { load: &[], ..RECIPE }, b"agent"));
    let other = Recipe {
        files: &[("init", 0o755, "#!/bin/ash\n")],
        ..RECIPE
    };
    assert_ne!(usual, digest(other, b"agent"));
}

#[test]
fn modules_of_ones_own_are_a_part_of_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let modules = path.join("modules");
    fs::create_dir(&modules).unwrap();
    let recipe = Recipe {
        modules: Some(&modules),
        ..RECIPE
    };
    fs::write(modules.join("vfio.ko"), "old").unwrap();
    fs::write(modules.join("vfio.o"), "").unwrap();
    let before = recipe.digest(b"").unwrap();
    fs::write(modules.join("vfio.ko"), "new").unwrap();
    assert_ne!(before, recipe.digest(b"").unwrap());
    let root = path.join("root");
    assert_eq!(own_modules(&recipe, &root, "6.12").unwrap(), ["vfio.ko"]);
    assert_eq!(
        fs::read_to_string(root.join("lib/modules/6.12/updates/vfio.ko")).unwrap(),
        "new"
    );
    assert_eq!(own_modules(&RECIPE, &root, "6.12").unwrap(), [""; 0]);
    let absent = Recipe {
        modules: Some(&path.join("none")),
        ..RECIPE
    };
    absent.digest(b"").unwrap_err();
}
