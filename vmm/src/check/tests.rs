use super::*;

#[test]
fn software_only_kvm_is_named() {
    let cpuinfo = "processor\t: 0\nflags\t\t: fpu vme svme\n";
    let finding = cpu(cpuinfo, true);
    assert_eq!(finding.verdict, Verdict::Fail);
    assert!(finding.text.contains("--host emulated"));
    assert!(cpu(cpuinfo, false).text.contains("firmware"));
    assert_eq!(cpu("flags : fpu svm\n", true).verdict, Verdict::Ok);
}

#[test]
fn refusals_of_the_device_name_their_cure() {
    let text = |errno| device(Some(&kvm_ioctls::Error::new(errno))).text;
    assert!(text(libc::ENOENT).contains("modprobe"));
    assert!(text(libc::EACCES).contains("usermod"));
}

#[test]
fn pages_are_told_apart() {
    assert_eq!(
        transparent("always within_size [advise] never deny force\n").verdict,
        Verdict::Ok
    );
    assert_eq!(
        transparent("always within_size advise [never] deny force\n").verdict,
        Verdict::Note
    );
    assert_eq!(
        hugepages("HugePages_Free:      12\nHugepagesize:    2048 kB\n").verdict,
        Verdict::Ok
    );
    assert_eq!(hugepages("").verdict, Verdict::Note);
    let line = "Max locked memory         8388608              8388608              bytes\n";
    assert!(memlock(line).text.starts_with("8388608"));
}

#[test]
fn every_line_is_one_line() {
    for finding in all() {
        assert!(!finding.to_string().contains('\n'));
    }
}
