"""eval: is the tuned system better than its baseline? Numbers with intervals, a report, a blind survey."""
