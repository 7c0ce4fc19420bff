use super::*;

fn leaf(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

const INTEL: u32 = 0x756e_6547;
const AMD: u32 = 0x6874_7541;

fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
    *cpuid
        .as_slice()
        .iter()
        .find(|e| e.function == function && e.index == index)
        .expect("the leaf is there")
}

#[test]
fn topology_is_cores_of_one_socket() {
    let host = [
        leaf(0, 0x1f, INTEL, 0, 0),
        leaf(1, 0, 0x0a00_1234, 0, 0),
        leaf(0xb, 9, 9, 9, 9),
    ];
    let cpuid = Template::from_supported(&host, 6, true).for_cpu(5, None).unwrap();
    let one = find(&cpuid, 1, 0);
    assert_eq!(one.ebx, 5 << 24 | 8 << 16 | 0x1234);
    assert_eq!(one.ecx, 1 << 31 | 1 << 24, "hypervisor and deadline timer");
    assert_eq!(one.edx, 1 << 28);
    for function in [0xb, 0x1f] {
        let [smt, core, end] = [0, 1, 2].map(|i| find(&cpuid, function, i));
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (0, 1, 0x100, 5));
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 6, 0x201, 5));
        assert_eq!((end.ebx, end.ecx, end.edx), (0, 2, 5));
    }
}

#[test]
fn one_processor_has_no_siblings_and_no_timer_that_kvm_lacks() {
    let host = [leaf(0, 0xb, INTEL, 0, 0), leaf(1, 0, 0, 1 << 24, 1 << 28)];
    let cpuid = Template::from_supported(&host, 1, false)
        .for_cpu(0, None)
        .unwrap();
    let one = find(&cpuid, 1, 0);
    assert_eq!((one.ebx, one.ecx, one.edx), (1 << 16, 1 << 31, 0));
    let core = find(&cpuid, 0xb, 1);
    assert_eq!((core.eax, core.ebx), (0, 1));
    assert!(
        !cpuid.as_slice().iter().any(|e| e.function == 0x1f),
        "beyond the highest leaf"
    );
}

#[test]
fn amd_leaves_name_cores() {
    let host = [
        leaf(0, 0xd, AMD, 0, 0),
        leaf(0x8000_0001, 0, 0, 0, 0),
        leaf(0x8000_0008, 0x3028, 0, 0xffff, 0),
        leaf(0x8000_001e, 7, 7, 7, 0),
        leaf(0x8000_0026, 7, 7, 7, 0),
    ];
    let cpuid = Template::from_supported(&host, 32, true)
        .for_cpu(17, None)
        .unwrap();
    assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx, 2);
    assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 31 | 5 << 12);
    let node = find(&cpuid, 0x8000_001e, 0);
    assert_eq!((node.eax, node.ebx, node.ecx), (17, 17, 0));
    assert!(!cpuid.as_slice().iter().any(|e| e.function == 0x8000_0026));
}

#[test]
fn frequencies_are_told_when_known() {
    let host = [leaf(0, 1, INTEL, 0, 0), leaf(HYPERVISOR, 0x4000_0001, 0, 0, 0)];
    let template = Template::from_supported(&host, 1, true);
    let timing = find(
        &template.for_cpu(0, Some(2_100_000)).unwrap(),
        HYPERVISOR_TIMING,
        0,
    );
    assert_eq!((timing.eax, timing.ebx), (2_100_000, 1_000_000));
    assert_eq!(
        find(&template.for_cpu(0, None).unwrap(), HYPERVISOR, 0).eax,
        HYPERVISOR_TIMING
    );
}
