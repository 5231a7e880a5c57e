use serde_json::Value;

use super::*;
use crate::recon::testing::scene;

fn decode(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    } as u32;
    let digits: Vec<u32> = text.trim_end_matches('=').bytes().map(digit).collect();
    let bytes = digits.chunks(4).flat_map(|c| {
        let word = (0..4).fold(0, |w, i| w << 6 | c.get(i).unwrap_or(&0));
        word.to_be_bytes()[1..c.len()].to_vec()
    });
    bytes.collect()
}

fn data(html: &str) -> Value {
    let start = html.find("id=\"data\">").unwrap() + 10;
    serde_json::from_str(&html[start..start + html[start..].find("</script>").unwrap()]).unwrap()
}

#[test]
fn base64_is_standard() {
    for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
        assert_eq!((base64(plain.as_bytes()).as_str(), decode(coded)), (coded, plain.as_bytes().to_vec()));
    }
    assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
}

/// Two runs that differ by a scale lie on top of each other, and on their own points.
#[test]
fn clouds_come_back_in_the_first_camera_and_median_depth() {
    let scene = scene();
    let mut twice = scene.clone();
    for view in &mut twice.views {
        view.depth.iter_mut().for_each(|d| *d *= 2.0);
        view.pose.translation.iter_mut().for_each(|t| *t *= 2.0);
    }
    let runs = [("one", &scene), ("two", &twice)].map(|(n, reconstruction)| Run { name: n.into(), reconstruction });
    let mut report = Report::new("T", "L", runs.to_vec());
    report.points = PointOptions { confidence_percentile: 0.0, max_points: 1000 };
    let data = data(&report.html().unwrap());
    let points = scene.points(&report.points);
    let unit = scene.median_depth().unwrap() as f32;
    for cloud in data["clouds"].as_array().unwrap() {
        assert_eq!(cloud["count"], points.len());
        let positions = decode(cloud["positions"].as_str().unwrap());
        let colors = decode(cloud["colors"].as_str().unwrap());
        let number = |key: &str, axis: usize| cloud[key][axis].as_f64().unwrap() as f32;
        for (i, p) in points.iter().enumerate() {
            for a in 0..3 {
                let at = 6 * i + 2 * a;
                let value = u16::from_le_bytes([positions[at], positions[at + 1]]) as f32;
                let found = number("low", a) + number("step", a) * value;
                // The first camera is the world here, so only the unit differs.
                assert!((found - p.position[a] / unit).abs() < 1e-3, "{found} {:?}", p.position);
            }
            assert_eq!(colors[3 * i..3 * i + 3], p.color);
        }
        assert_eq!(cloud["frusta"][0][0], serde_json::json!([0.0, 0.0, 0.0]));
    }
}

#[test]
fn the_page_loads_nothing_and_escapes_what_it_is_given() {
    let scene = scene();
    let name = "a<b>&\"'</script>".to_string();
    let mut report = Report::new(&name, &name, vec![Run { name: name.clone(), reconstruction: &scene }]);
    report.facts = vec![(name.clone(), "{{css}}".into())];
    report.tables = vec![Table {
        title: name.clone(),
        note: name.clone(),
        columns: vec![name.clone()],
        rows: vec![vec![name.clone()]],
    }];
    report.truth = Some(&scene);
    let html = report.html().unwrap();
    assert!(!html.contains("a<b>") && html.contains("a&lt;b&gt;&amp;&quot;&#39;&lt;/script&gt;"));
    for outside in ["http:", "https:", "//cdn", "src=\"/", "@import", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
    // A value that looks like a placeholder stays what it is.
    assert_eq!(html.matches("{{").count(), 1);
    assert_eq!(html.matches("<script").count(), html.matches("</script>").count());
    assert_eq!(data(&html)["clouds"][0]["name"], name.as_str());
    assert_eq!(data(&html)["clouds"][1]["name"], "ground truth");
    // Input, depth, true depth and error of two views.
    assert_eq!(html.matches("<img ").count(), 8);
}

#[test]
fn runs_must_show_the_same_views() {
    let scene = scene();
    let mut less = scene.clone();
    less.views.pop();
    let runs = [("one", &scene), ("two", &less)].map(|(n, reconstruction)| Run { name: n.into(), reconstruction });
    let error = Report::new("", "", runs.to_vec()).html().unwrap_err();
    assert!(error.code == "recon.report" && error.to_string().contains("two"), "{error}");
    assert_eq!(Report::new("", "", Vec::new()).html().unwrap_err().code, "recon.report");
}
