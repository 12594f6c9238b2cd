"""SageMaker: the request as a value, checked offline; the calls; and what AWS answers, told in words."""
